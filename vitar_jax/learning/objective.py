"""What a stage optimizes. An objective has four parts, and the train step knows no more of it:

1. `extras`: the arrays that it needs per token, beside what every batch has;
2. `annotate`: what is computed once per batch, before the first update;
3. `loss`: the loss of a micro-batch and its metrics;
4. `batches`: the feed.

Its fields are the keys of a stage's `objective`. `OBJECTIVES` finds one by name; a user's is `FILE.py:NAME`, a subclass.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.data.pipeline import Share
from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes import protocols
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.errors import ConfigError
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
    """What the model says of a batch's tokens, [bins, rows, S] each; 0 for tokens outside the loss mask."""

    logprobs: Float[Array, "*B S"]
    entropies: Float[Array, "*B S"]


class Counts(NamedTuple):
    """Denominators of a whole batch: policy tokens, and sequences (segments of a row)."""

    tokens: Int[Array, ""]
    sequences: Int[Array, ""]


class Passes(NamedTuple):
    """How often a batch goes through the model: `epochs` times in `minibatches` updates each, after `scorings` without
    gradient."""

    epochs: int = 1
    minibatches: int = 1
    scorings: int = 0

    @property
    def updates(self) -> int:
        """Optimizer steps per batch."""
        return self.epochs * self.minibatches


class Batches(Protocol):
    """What feeds the loop. Its state is how far this process has read, so a restart continues at the same sample."""

    def next(self, state: Any) -> tuple[Batch, Scalars]:
        """Returns the next batch on the host, and numbers to log; names of seconds begin with `timing_s/`.

        Args:
          state: The `TrainState` that the batch is for.
        """
        ...

    def get_state(self) -> dict[str, int]: ...

    def set_state(self, state: dict[str, int]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a stage gives its objective to make batches of.

    Attributes:
      protocol: Name of the protocol for sources that name none.
      protocols: All protocols by name.
      batch_size: Of all processes.
      shape: Of this process's share of a batch.
      seed: Of the order of the data; `sampling_seed`: of what is sampled.
      threads: Number of threads that read ahead.
      player: Makes a player from the weights in training; None where nothing is played.
      keep: Takes the step and its trajectories, to record them.
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
    share: Share = Share()
    player: Callable[[Any, Sampling], Player] | None = None
    keep: Callable[[int, Sequence[Trajectory]], None] = lambda step, trajectories: None


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """The base of all objectives; its fields are keys that each of them has.

    Attributes:
      name: A registered name, or `path/to/file.py:name`.
      rewards: What an episode is worth, in rollouts and in probes, by any names; their parts add up.
    """

    name: str = ""
    rewards: Mapping[str, RewardConfig] = dataclasses.field(
        default_factory=lambda: {"vitar": RewardConfig("vitar")}, hash=False
    )

    @classmethod
    def kind(cls, name: str) -> "type[Objective]":
        found = OBJECTIVES.find(name)
        if not (isinstance(found, type) and issubclass(found, Objective)):
            raise ConfigError(f"{name!r} is no subclass of vitar_jax.learning.objective.Objective")
        return found

    # The four parts

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the arrays that `batches` adds to every batch, one float32 per token."""
        return ()

    def annotate(self, batch: Batch, policy: LogprobsOf, reference: LogprobsOf | None) -> Batch:
        """Returns the batch with what is computed before the first update.

        Args:
          policy: By the weights that the step starts with.
          reference: By those that the stage started with; None unless `needs_reference`.
        """
        del policy, reference
        return batch

    @abc.abstractmethod
    def loss(self, scores: TokenScores, batch: Batch, counts: Any) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss of a micro-batch and more metrics. Over micro-batches they add up, but for metrics whose names end
        in `_max`; over updates their mean is logged.

        Args:
          counts: What `counts` returned for the whole batch.
        """

    @abc.abstractmethod
    def batches(self, feed: Feed) -> Batches:
        """Returns what feeds the stage."""

    # What the step and the sizes follow from

    passes = property(lambda self: Passes())
    rows_per_sample = property(lambda self: 1)
    packs_rows = property(lambda self: False)
    plays = property(lambda self: False)
    needs_reference = property(lambda self: False)
    scoring_temperature = property(lambda self: 1.0)

    def counts(self, batch: Batch) -> Any:
        """Returns the denominators of a whole batch; at least the fields of `Counts`."""
        return count_batch(batch.loss_mask, batch.segment_ids)

    def summarize(self, metrics: Metrics) -> Metrics:
        """Returns what is logged, from the metrics of a whole step."""
        return metrics

    def watch(self) -> Callable[[Scalars], Sequence[str]]:
        """Returns what turns logged numbers into warnings."""
        return lambda scalars: ()


OBJECTIVES: Registry[type[Objective]] = Registry("objective")


def score_tokens(
    model: Any, batch: Batch, banned: Bool[Array, " V"], *, temperature: float, max_tokens: int | None, chunk: int
) -> TokenScores:
    """Scores the policy tokens of a device batch."""
    hidden = model(**batch.inputs)
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
    """Counts policy tokens and sequences; with `empty`, sequences without a policy token count too."""
    tokens = jnp.sum(loss_mask)
    if empty:
        return Counts(tokens, jnp.sum(jnp.max(segment_ids, axis=-1)))
    return Counts(tokens, jnp.sum(_by_segment(loss_mask.astype(jnp.int32), segment_ids) > 0))


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"], count: Int[Array, ""] | None = None) -> Float[Array, ""]:
    """Returns the mean of the masked values. With `count` of the whole batch, means of micro-batches add up to its mean."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask) if count is None else count, 1)


def sequence_sums(values: Float[Array, "*B S"], segment_ids: Int[Array, "*B S"]) -> Float[Array, "*B S"]:
    """Returns, for each token, the sum over its sequence."""
    return jnp.take_along_axis(_by_segment(values, segment_ids), segment_ids, axis=-1)


def _by_segment(values: Array, segment_ids: Array) -> Array:
    """Sums over the segments of each row, [*B, S + 1]."""
    sum_row = partial(jax.ops.segment_sum, num_segments=values.shape[-1] + 1)
    return jnp.vectorize(sum_row, signature="(s),(s)->(n)")(values, segment_ids)
