"""Objectives of stages. The train step uses four parts of an objective:

1. `extras` names the arrays that it adds to every batch, with one value per token.
2. `annotate` computes values once per batch, before the first update.
3. `loss` computes the loss and the metrics of a micro-batch.
4. `batches` makes the batches.

The fields of an objective are the keys of a stage's `objective`. `OBJECTIVES` finds an objective by its name. A user's
objective is a subclass that the config names as `FILE.py:NAME`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.data.pipeline import Share
from vitar_jax.data.skipping import MAX_SHARE
from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes import protocols
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.errors import ConfigError
from vitar_jax.learning.alarms import AlarmConfig, Alarms
from vitar_jax.learning.mask_loss import MaskLossConfig
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.rewards import RewardConfig
from vitar_jax.models.logprobs import token_logprobs
from vitar_jax.processing.packing import Batch, BatchShape
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.registry import Registry

Metrics = dict[str, Array]
LogprobsOf = Callable[[Batch], Array]  # log-probabilities [bins, rows, S] of a batch's policy tokens, without gradient


class TokenScores(NamedTuple):
    """Log-probabilities and entropies of a batch's tokens, [bins, rows, S] each, which are 0 outside the loss mask."""

    logprobs: Float[Array, "*B S"]
    entropies: Float[Array, "*B S"]


class Counts(NamedTuple):
    """Denominators of a full batch: its numbers of policy tokens and of sequences (segments of a row)."""

    tokens: Int[Array, ""]
    sequences: Int[Array, ""]


class Passes(NamedTuple):
    """Passes of a batch through the model: `scorings` without gradient, then `epochs` of `minibatches` updates each."""

    epochs: int = 1
    minibatches: int = 1
    scorings: int = 0

    @property
    def updates(self) -> int:
        """Number of optimizer steps per batch."""
        return self.epochs * self.minibatches


class Batches(Protocol):
    """The batches of a stage. Their state is this process's position in the data, so a restart resumes at the same sample."""

    def next(self, state: Any) -> tuple[Batch, Scalars]:
        """Returns the next batch on the host, and scalars to log. Names of times in seconds begin with `timing_s/`.

        Args:
          state: The current `TrainState`.
        """
        ...

    def get_state(self) -> dict[str, int]: ...

    def set_state(self, state: dict[str, int]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Feed:
    """The inputs of an objective's `batches`.

    Attributes:
      protocol: Name of the protocol of sources that do not name one.
      protocols: All protocols by name.
      batch_size: Number of samples or rows per batch, over all processes.
      shape: Shape of this process's share of a batch.
      seed: Seed of the order of the data.
      sampling_seed: Seed of the sampled tokens.
      threads: Number of threads that read ahead.
      max_skipped_share: Maximum share of records that may be skipped; see `data.skipping.Skips`.
      player: Makes a player from the weights in training. None if the stage plays no episodes.
      keep: Records the trajectories of a step.
      directory: Directory of the stage, for files that batches are made from. None if nothing is written.
      start: Step that the stage starts or resumes from.
    """

    sources: Sequence[SourceConfig]
    protocol: str
    protocols: Mapping[str, protocols.Protocol]
    batch_size: int
    processor: Processor
    limits: Limits
    shape: BatchShape
    seed: int
    sampling_seed: int = 0
    threads: int = 2
    max_skipped_share: float = MAX_SHARE
    share: Share = Share()
    player: Callable[[Any, Sampling], Player] | None = None
    keep: Callable[[int, Sequence[Trajectory]], None] = lambda step, trajectories: None
    directory: Path | None = None
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """The base class of objectives. Its fields are keys of every objective.

    Attributes:
      name: A registered name, or `path/to/file.py:name`.
      rewards: Rewards of an episode, in rollouts and probes, by arbitrary names. The parts of all rewards are summed.
      masks: Loss of the masks at `[SEG]` tokens, which the train step adds to that of `loss`. None learns no masks.
      alarms: Thresholds of the warnings about rollouts, and about probes with interventions.
    """

    name: str = ""
    rewards: Mapping[str, RewardConfig] = dataclasses.field(
        default_factory=lambda: {"vitar": RewardConfig("vitar")}, hash=False
    )
    masks: MaskLossConfig | None = None
    alarms: AlarmConfig = dataclasses.field(default_factory=AlarmConfig)

    @classmethod
    def kind(cls, name: str) -> "type[Objective]":
        """Returns the class of an objective by its name.

        Raises:
          ConfigError: If the name is unknown or does not name a subclass of `Objective`.
        """
        found = OBJECTIVES.find(name)
        if not (isinstance(found, type) and issubclass(found, Objective)):
            raise ConfigError(f"{name!r} is not a subclass of vitar_jax.learning.objective.Objective")
        return found

    # The four parts

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the arrays that `batches` adds to every batch, with one float32 per token."""
        return ()

    def annotate(self, batch: Batch, policy: LogprobsOf, reference: LogprobsOf | None) -> Batch:
        """Returns the batch with the arrays that are computed once, before its first update.

        Args:
          policy: Scores tokens with the weights at the start of the step.
          reference: Scores tokens with the weights at the start of the stage. None unless `needs_reference`.
        """
        del policy, reference
        return batch

    @abc.abstractmethod
    def loss(self, scores: TokenScores, batch: Batch, counts: Any) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss and the metrics of a micro-batch.

        Both are summed over micro-batches and averaged over updates. Metrics named `*_max` take the maximum instead.

        Args:
          counts: Result of `counts` for the full batch.
        """

    @abc.abstractmethod
    def batches(self, feed: Feed) -> Batches:
        """Returns the batches of a stage."""

    def inputs(self) -> Mapping[str, Mapping[str, Any]]:
        """Opens the files that `batches` reads besides the sources, so that a wrong path fails before anything is trained.

        Returns:
          For each of the objective's keys that names files, their description with a `sha256`, for the run's manifest.
        """
        return {}

    # Properties that determine the train step and its shapes

    passes = property(lambda self: Passes())
    rows_per_sample = property(lambda self: 1)
    image_sets = property(lambda self: 1)  # number of different sets of images that the rows of a sample begin with
    packs_rows = property(lambda self: False)
    fills_micro_batches = property(lambda self: False)  # whether `batches` packs episodes, and empty micro-batches are skipped
    plays = property(lambda self: False)
    corrects_sampler = property(lambda self: False)  # whether the loss weights tokens for a sampler unlike the trainer
    needs_reference = property(lambda self: False)
    needs_entropies = property(lambda self: False)  # whether the batch given to `annotate` has `entropies` of `policy`
    scoring_temperature = property(lambda self: 1.0)

    def counts(self, batch: Batch) -> Any:
        """Returns the denominators of a full batch, which have at least the fields of `Counts`."""
        return count_batch(batch.loss_mask, batch.segment_ids)

    def summarize(self, metrics: Metrics) -> Metrics:
        """Returns the metrics to log for a step, given the step's metrics."""
        return metrics

    def watch(self) -> Callable[[Scalars], Sequence[str]]:
        """Returns a function from logged scalars to warnings. An alarm is only raised where its scalars are logged."""
        return Alarms(self.alarms).check


OBJECTIVES: Registry[type[Objective]] = Registry("objective")


def score_tokens(
    model: Any,
    hidden: Float[Array, "bins rows S D"],
    batch: Batch,
    banned: Bool[Array, " V"],
    *,
    temperature: float,
    max_tokens: int | None,
    chunk: int,
) -> TokenScores:
    """Scores the policy tokens of a device batch from the model's hidden states."""
    return TokenScores(
        *token_logprobs(
            hidden,
            model.head(),
            batch.token_ids,
            batch.loss_mask,
            banned,
            temperature=temperature,
            max_tokens=max_tokens,
            chunk=chunk,
        )
    )


def count_batch(loss_mask: Bool[Array, "*B S"], segment_ids: Int[Array, "*B S"], *, empty: bool = False) -> Counts:
    """Counts policy tokens and sequences. With `empty`, also counts sequences without policy tokens."""
    tokens = jnp.sum(loss_mask)
    if empty:
        return Counts(tokens, jnp.sum(jnp.max(segment_ids, axis=-1)))
    return Counts(tokens, jnp.sum(_by_segment(loss_mask.astype(jnp.int32), segment_ids) > 0))


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"], count: Int[Array, ""] | None = None) -> Float[Array, ""]:
    """Returns the mean of the masked values. With the full batch's `count`, means of micro-batches add up."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask) if count is None else count, 1)


def sequence_sums(values: Float[Array, "*B S"], segment_ids: Int[Array, "*B S"]) -> Float[Array, "*B S"]:
    """Returns the sum over each token's sequence."""
    return jnp.take_along_axis(_by_segment(values, segment_ids), segment_ids, axis=-1)


def _by_segment(values: Array, segment_ids: Array) -> Array:
    """Sums over the segments of each row, [*B, S + 1]."""
    sum_row = partial(jax.ops.segment_sum, num_segments=values.shape[-1] + 1)
    return jnp.vectorize(sum_row, signature="(s),(s)->(n)")(values, segment_ids)
