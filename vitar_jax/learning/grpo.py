"""GRPO: plays groups of episodes, rewards them, computes advantages and packs batches."""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitar_jax.data.pipeline import sample_stream
from vitar_jax.data.skipping import Skips, attempt, skipped_scalars
from vitar_jax.data.sources import Source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.learning.advantages import group_advantages, length_penalty, zero_variance
from vitar_jax.learning.alarms import AlarmConfig, Alarms
from vitar_jax.learning.grpo_loss import GRPOLossConfig, grpo_loss, refuse, sampler_gap
from vitar_jax.learning.metrics import Scalars, rollout_scalars
from vitar_jax.learning.objective import (
    OBJECTIVES,
    Batches,
    Counts,
    Feed,
    LogprobsOf,
    Metrics,
    Objective,
    Passes,
    TokenScores,
    count_batch,
)
from vitar_jax.learning.rewards import Failure, Rewards
from vitar_jax.learning.train_state import TrainState
from vitar_jax.processing.packing import Batch, BatchShape, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.groups import fork_groups
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.distributed import gather_json, mean_over_processes

Group = list[tuple[Episode, Trajectory, Failure | None]]  # episodes of one sample, with rewards or a failure


@dataclasses.dataclass(frozen=True)
class GRPO(GRPOLossConfig, Objective):
    """GRPO and its family: plays a group of episodes per sample and learns from their rewards.

    `GRPOLossConfig` has the keys of the loss.

    Attributes:
      group_size: Number of episodes per sample. `batch_size` counts samples.
      temperature, top_p: Sampling of tokens.
      alarms: Thresholds of the warnings about rollouts.
      epochs, minibatches: Each rollout is used for `epochs` passes of `minibatches` optimizer steps. An episode stays in its
        minibatch, which is a share of the rows of every data shard.
      refills: Maximum number of times that groups of equal rewards are replaced by groups of further samples (DAPO's dynamic
        sampling; verl's recipe uses 10). Each process replaces its own groups and keeps those left after the last refill.
      mask_overlong: Whether to mask the loss of cut-off episodes (DAPO). They still count in their group's advantages.
      overlong_penalty: Weight of a reward part for an episode's number of policy tokens: 0 up to `overlong_start`, -1 from
        `overlong_end` on, linear in between (DAPO, equation 13).
      scale_advantages: Whether to divide by the group's std plus `epsilon` (verl 1e-6, TRL 1e-4). `ddof` is 1 in both.
      batch_std: Whether that std is of all rewards of the batch, over all processes (`scale_rewards="batch"` of TRL).
    """

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    alarms: AlarmConfig = dataclasses.field(default_factory=AlarmConfig)
    epochs: int = 1
    minibatches: int = 1
    refills: int = 0
    mask_overlong: bool = False
    overlong_penalty: float = 0.0
    overlong_start: int = 0
    overlong_end: int = 0
    scale_advantages: bool = True
    batch_std: bool = False
    epsilon: float = 1e-6
    ddof: Literal[0, 1] = 1

    rows_per_sample = property(lambda self: self.group_size)
    plays = property(lambda self: True)
    needs_reference = property(lambda self: self.kl_coefficient > 0)
    scoring_temperature = property(lambda self: self.temperature)

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = {
            "epochs, minibatches: must be positive": min(self.epochs, self.minibatches) < 1,
            "refills: must not be negative": self.refills < 0,
            "overlong_penalty: must not be negative": self.overlong_penalty < 0,
            "overlong_start: must be below overlong_end": self.overlong_penalty > 0
            and not 0 <= self.overlong_start < self.overlong_end,
            "overlong_start, overlong_end: overlong_penalty is 0": not self.overlong_penalty
            and (self.overlong_start or self.overlong_end),
            "epsilon: must not be negative": self.epsilon < 0,
            "batch_std: scale_advantages is false": self.batch_std and not self.scale_advantages,
        }
        refuse(wrong)

    @property
    def passes(self) -> Passes:
        scorings = (self.old_logprobs == "trainer") + self.needs_reference
        return Passes(self.epochs, self.minibatches, scorings)

    @property
    def extras(self) -> tuple[str, ...]:
        return ("advantages", "old_logprobs")

    def annotate(self, batch: Batch, policy: LogprobsOf, reference: LogprobsOf | None) -> Batch:
        """Adds the log-probabilities of the reference, and of the trainer instead of the sampler, if the loss uses them."""
        if self.old_logprobs == "trainer":
            batch = batch.with_extras(sampler_logprobs=batch.extras["old_logprobs"], old_logprobs=policy(batch))
        if self.needs_reference:
            assert reference is not None
            batch = batch.with_extras(reference_logprobs=reference(batch))
        return batch

    def counts(self, batch: Batch) -> Counts:
        return count_batch(batch.loss_mask, batch.segment_ids, empty=self.count_empty)

    def loss(self, scores: TokenScores, batch: Batch, counts: Counts) -> tuple[Float[Array, ""], Metrics]:
        old, sampler = batch.extras["old_logprobs"], batch.extras.get("sampler_logprobs")
        loss, metrics = grpo_loss(
            scores.logprobs,
            old,
            batch.extras["advantages"],
            batch.loss_mask,
            batch.segment_ids,
            self,
            entropies=scores.entropies,
            reference_logprobs=batch.extras.get("reference_logprobs"),
            sampler_logprobs=sampler,
            counts=counts,
        )
        # If the trainer computes the old log-probabilities, the gap is that before the first update, at the sampler's weights.
        trainer, sampler = (scores.logprobs, old) if sampler is None else (old, sampler)
        return loss, metrics | sampler_gap(trainer, sampler, batch.loss_mask, counts.tokens)

    def summarize(self, metrics: Metrics) -> Metrics:
        """Replaces moments of the importance weights w by the effective sample size (sum w)^2 / (n sum w^2)."""
        square = jnp.maximum(metrics["ratio_square"], 1e-30)
        kept = {name: value for name, value in metrics.items() if name != "ratio_square"}
        return kept | {"effective_sample_size": metrics["ratio_mean"] ** 2 / square}

    def watch(self) -> Callable[[Scalars], Sequence[str]]:
        return Alarms(self.alarms).check

    def batches(self, feed: Feed) -> Batches:
        assert feed.player is not None
        return GRPOBatches(
            samples=sample_stream(feed.sources, seed=feed.seed, share=feed.share),
            groups=feed.share.size(feed.batch_size),
            player=feed.player,
            sampling=Sampling(self.temperature, self.top_p, feed.sampling_seed),
            shape=feed.shape,
            rewards=Rewards(self.rewards),
            objective=self,
            keep=feed.keep,
            skips=Skips(feed.max_skipped_share),
        )


OBJECTIVES["grpo"] = GRPO


@dataclasses.dataclass
class GRPOBatches:
    """Batches of episodes: each sample is played `group_size` times with the newest weights.

    Attributes:
      samples: This process's infinite stream of samples.
      groups: Number of this process's groups per batch.
      player: Makes a player from the weights in training.
      keep: Records the trajectories of a step.
      taken: Number of samples read so far.
      skips: Samples that could not be played, which the next ones replace.
    """

    samples: Source
    groups: int
    player: Callable[[Any, Sampling], Player]
    sampling: Sampling
    shape: BatchShape
    rewards: Rewards
    objective: GRPO
    keep: Callable[[int, Sequence[Trajectory]], None]
    taken: int = 0
    skips: Skips = dataclasses.field(default_factory=Skips)

    def next(self, state: TrainState) -> tuple[Batch, Scalars]:
        step = int(state.step)
        began = time.perf_counter()
        sampling = dataclasses.replace(self.sampling, seed=(self.sampling.seed * 1_000_003 + step) % 2**32)
        player = self.player(state.model, sampling)
        rewarding = 0.0
        groups: list[Group] = []
        seen: Counter[int] = Counter()
        for _ in range(1 + self.objective.refills):
            missing = self.groups - sum(not _is_flat(group) for group in groups)
            played = self._play(player, missing, seen)
            ended = time.perf_counter()
            groups += self._rewarded(player, played, policy_version=step)
            rewarding += time.perf_counter() - ended
        processor = player.processor
        del player  # frees the memory of its weights and cache for the update
        groups, replaced = _chosen(groups, self.groups)
        episodes, trajectories, failures = zip(*(one for group in groups for one in group), strict=True)
        rewarded = time.perf_counter()
        trajectories = with_advantages(trajectories, self.objective)
        self.keep(step, trajectories)
        batch = grpo_batch(episodes, trajectories, self.objective, self.shape, processor)
        scalars = rollout_scalars(trajectories, failures, self._parts) | {
            **mean_over_processes({"rollout/replaced_groups": [replaced]}),
            **skipped_scalars(self.skips.get_state()),
            "timing_s/rollout": rewarded - began - rewarding,
            "timing_s/reward": rewarding,
            "timing_s/batch": time.perf_counter() - rewarded,
        }
        return batch, scalars

    def get_state(self) -> dict[str, int]:
        return {"taken": self.taken, **self.skips.get_state()}

    def set_state(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]
        self.skips.set_state(state)

    @property
    def _parts(self) -> list[str]:
        return [*self.rewards.parts, *(["overlong"] if self.objective.overlong_penalty else [])]

    def _play(self, player: Player, count: int, seen: Counter[int]) -> list[list[Episode]]:
        """Plays a group of episodes for each of the next `count` samples that can be played.

        Args:
          seen: Number of the step's groups so far; see `fork_groups`, which counts over all processes.
        """
        leaders: list[Episode] = []
        while missing := count - len(leaders):
            numbers = range(self.taken, self.taken + missing)
            self.taken += missing
            begun = player.pool.map(lambda number: attempt(partial(self._begin, player, number)), numbers)
            leaders += [episode for one in begun if (episode := self.skips.accept(one)) is not None]
        groups = fork_groups(leaders, self.objective.group_size, seen)
        if groups:  # to play no groups would still allocate a cache
            for _ in player.play(groups):
                pass
        return groups

    def _begin(self, player: Player, number: int) -> Episode:
        sample = self.samples[number]
        self.rewards.check(sample)
        return player.begin(sample)

    def _rewarded(self, player: Player, groups: Sequence[Sequence[Episode]], policy_version: int) -> list[Group]:
        """Rewards the episodes of groups."""
        records = (player.record(episode, policy_version=policy_version) for group in groups for episode in group)
        rewarded_records = player.pool.map(self.rewards, records)
        return [
            [
                (episode, _with_length_penalty(trajectory, self.objective), failure)
                for episode, (trajectory, failure) in zip(group, rewarded_records, strict=False)
            ]
            for group in groups
        ]


def with_advantages(trajectories: Sequence[Trajectory], objective: GRPO) -> list[Trajectory]:
    """Returns the trajectories of complete groups with their advantages."""
    rewards = [t.reward for t in trajectories]
    std = None
    if objective.batch_std:
        # Sorted, so that rounding does not depend on which process played which group.
        known = np.sort([r for own in gather_json([r for r in rewards if not np.isnan(r)]) for r in own])
        std = float(np.std(known, ddof=objective.ddof)) if len(known) > objective.ddof else 0.0
    advantages = group_advantages(
        rewards,
        [t.group_id for t in trajectories],
        scale=objective.scale_advantages,
        epsilon=objective.epsilon,
        ddof=objective.ddof,
        std=std,
    )
    return [dataclasses.replace(t, advantage=float(a)) for t, a in zip(trajectories, advantages, strict=True)]


def grpo_batch(
    episodes: Sequence[Episode],
    trajectories: Sequence[Trajectory],
    objective: GRPO,
    shape: BatchShape,
    processor: Processor,
) -> Batch:
    """Packs episodes into a batch, with `old_logprobs` (the sampler's log-probabilities) and `advantages` for every token.

    The loss mask is empty for episodes without a reward and, with `mask_overlong`, for cut-off episodes.

    Args:
      trajectories: The episodes' trajectories, from `with_advantages`.
    """
    examples = []
    for episode, trajectory in zip(episodes, trajectories, strict=True):
        example = episode.example(
            old_logprobs=np.array([p or 0.0 for p in episode.logprobs], np.float32),
            advantages=np.full(len(episode.token_ids), trajectory.advantage, np.float32),
        )
        left_out = trajectory.rewards is None or (objective.mask_overlong and trajectory.cut_off)
        examples.append(dataclasses.replace(example, loss_mask=example.loss_mask & (not left_out)))
    return pack(examples, shape, processor)


def _with_length_penalty(trajectory: Trajectory, objective: GRPO) -> Trajectory:
    """Returns the trajectory with the reward part `overlong`, if the objective has that part."""
    if not objective.overlong_penalty or trajectory.rewards is None:
        return trajectory
    penalty = length_penalty(sum(trajectory.loss_mask), objective.overlong_start, objective.overlong_end)
    rewards = trajectory.rewards | {"overlong": objective.overlong_penalty * penalty}
    return dataclasses.replace(trajectory, rewards=rewards)


def _is_flat(group: Group) -> bool:
    return zero_variance(trajectory.reward for _, trajectory, _ in group)


def _chosen(groups: Sequence[Group], count: int) -> tuple[list[Group], int]:
    """Selects `count` groups in their order, leaving out the first groups of equal rewards.

    Returns:
      The groups, and the number of groups left out.
    """
    replaced = len(groups) - count
    out = [i for i, group in enumerate(groups) if _is_flat(group)][:replaced]
    return [group for i, group in enumerate(groups) if i not in out], replaced
