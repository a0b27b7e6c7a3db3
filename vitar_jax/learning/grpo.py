"""GRPO feeds the loop by playing: samples, groups of episodes, rewards, advantages, one device batch."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from vitar_jax.data.sources import Source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.learning.advantages import group_advantages, length_penalty, zero_variance
from vitar_jax.learning.grpo_loss import GRPOConfig
from vitar_jax.learning.metrics import Scalars, rollout_scalars
from vitar_jax.learning.rewards import Failure, Rewards
from vitar_jax.learning.train_state import TrainState
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.packing import Batch, BatchShape, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.player import Player
from vitar_jax.rollout.weights import RolloutWeights
from vitar_jax.runtime.distributed import mean_over_processes

Group = list[tuple[Episode, Trajectory, Failure | None]]  # episodes of one sample with rewards, or why they have none


@dataclasses.dataclass
class GRPOBatches:
    """Plays each sample `group_size` times with the newest weights and packs what was played.

    Attributes:
      samples: this process's, without end.
      groups: this process's groups of a batch.
      reshard: Returns the weights in rollout's layout.
      keep: called with the trajectories of every step.
      taken: samples played so far.
    """

    samples: Source
    groups: int
    protocol: Protocol
    engine: Engine
    reshard: Callable[[VisionLanguageModel], RolloutWeights]
    shape: BatchShape
    group_size: int
    sampling: Sampling
    rewards: Rewards
    objective: GRPOConfig
    keep: Callable[[int, Sequence[Trajectory]], None]
    taken: int = 0

    def next(self, state: TrainState) -> tuple[Batch, Scalars]:
        step = int(state.step)
        began = time.perf_counter()
        sampling = dataclasses.replace(self.sampling, seed=(self.sampling.seed * 1_000_003 + step) % 2**32)
        player = Player(self.engine, self.protocol, partial(self.reshard, state.model), sampling)
        rewarding = 0.0
        groups: list[Group] = []
        for _ in range(1 + self.objective.refills):
            missing = self.groups - sum(not _is_flat(group) for group in groups)
            if not missing:
                break
            played = self._play(player, missing)
            ended = time.perf_counter()
            groups += self._judged(player, played, policy_version=step)
            rewarding += time.perf_counter() - ended
        del player  # the update needs the memory of its weights and cache
        groups, replaced = _chosen(groups, self.groups)
        episodes, trajectories, failures = zip(*(one for group in groups for one in group), strict=True)
        rewarded = time.perf_counter()
        trajectories = with_advantages(trajectories, self.objective)
        self.keep(step, trajectories)
        batch = grpo_batch(episodes, trajectories, self.objective, self.shape, self.engine.processor)
        scalars = rollout_scalars(trajectories, failures, self._parts) | {
            **mean_over_processes({"rollout/replaced_groups": [replaced]}),
            "timing_s/rollout": rewarded - began - rewarding,
            "timing_s/reward": rewarding,
            "timing_s/batch": time.perf_counter() - rewarded,
        }
        return batch, scalars

    def get_state(self) -> dict[str, int]:
        return {"taken": self.taken}

    def set_state(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]

    @property
    def _parts(self) -> list[str]:
        return [*self.rewards.parts, *(["overlong"] if self.objective.overlong_penalty else [])]

    def _play(self, player: Player, count: int) -> list[list[Episode]]:
        """Plays the next samples."""
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        leaders = player.pool.map(player.begin, [self.samples[number] for number in numbers])
        groups = [[leader.fork(member) for member in range(self.group_size)] for leader in leaders]
        for _ in player.play(groups):
            pass
        return groups

    def _judged(self, player: Player, groups: Sequence[Sequence[Episode]], policy_version: int) -> list[Group]:
        records = (player.record(episode, policy_version=policy_version) for group in groups for episode in group)
        judged = player.pool.map(self.rewards, records)
        return [
            [
                (episode, _with_length_penalty(trajectory, self.objective), failure)
                for episode, (trajectory, failure) in zip(group, judged, strict=False)
            ]
            for group in groups
        ]


def with_advantages(trajectories: Sequence[Trajectory], objective: GRPOConfig) -> list[Trajectory]:
    """The trajectories of whole groups, each with its advantage."""
    advantages = group_advantages(
        [t.reward for t in trajectories],
        [t.group_id for t in trajectories],
        scale=objective.scale_advantages,
        epsilon=objective.epsilon,
        ddof=objective.ddof,
    )
    return [dataclasses.replace(t, advantage=float(a)) for t, a in zip(trajectories, advantages, strict=True)]


def grpo_batch(
    episodes: Sequence[Episode],
    trajectories: Sequence[Trajectory],
    objective: GRPOConfig,
    shape: BatchShape,
    processor: Processor,
) -> Batch:
    """One device batch of played episodes, with `old_logprobs` (the sampler's) and `advantages` for every token.

    An episode without a reward has no token under the loss mask.

    Args:
      trajectories: what `with_advantages` made of the episodes' records.
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


def _with_length_penalty(trajectory: Trajectory, objective: GRPOConfig) -> Trajectory:
    """The trajectory with the reward part `overlong`, where the objective has one."""
    if not objective.overlong_penalty or trajectory.rewards is None:
        return trajectory
    penalty = length_penalty(sum(trajectory.loss_mask), objective.overlong_start, objective.overlong_end)
    rewards = trajectory.rewards | {"overlong": objective.overlong_penalty * penalty}
    return dataclasses.replace(trajectory, rewards=rewards)


def _is_flat(group: Group) -> bool:
    return zero_variance(trajectory.reward for _, trajectory, _ in group)


def _chosen(groups: Sequence[Group], count: int) -> tuple[list[Group], int]:
    """So many of the groups in their order, without the first of those from which nothing is learnt.

    Returns:
      The groups, and how many were left out.
    """
    replaced = len(groups) - count
    out = [i for i, group in enumerate(groups) if _is_flat(group)][:replaced]
    return [group for i, group in enumerate(groups) if i not in out], replaced
