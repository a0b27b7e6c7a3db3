"""GRPO feeds the loop by playing: samples, groups of episodes, rewards, advantages, one device batch."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.learning.advantages import group_advantages, length_penalty, zero_variance, zero_variance_share
from vitar_jax.learning.loop import Scalars
from vitar_jax.learning.objectives import GRPOConfig
from vitar_jax.learning.rewards import RewardWeights, with_reward
from vitar_jax.learning.train_state import TrainState
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.parallel.distributed import mean_over_processes
from vitar_jax.processing.packing import Batch, BatchShape, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.view import RolloutView

Group = list[tuple[Episode, Trajectory]]  # episodes of one sample, with their rewards


@dataclasses.dataclass(frozen=True)
class GRPOBatches:
    """Plays each sample `group_size` times with the newest weights and packs what was played.

    Attributes:
      samples: iterator of this process's samples, with `get_state` and `set_state` (grain's).
      groups: this process's groups of a batch.
      view: makes the weights' rollout view.
      keep: called with the trajectories of every step.
      seed: of the run; each step's seed follows from it and the step.
    """

    samples: Any
    groups: int
    protocol: Protocol
    processor: Processor
    limits: Limits
    engine: Engine
    view: Callable[[Qwen2_5_VL], RolloutView]
    shape: BatchShape
    group_size: int
    sampling: Sampling
    reward: RewardWeights
    objective: GRPOConfig
    banned_sha256: str
    keep: Callable[[int, Sequence[Trajectory]], None]

    def next(self, state: TrainState) -> tuple[Batch, Scalars]:
        step = int(state.step)
        began = time.perf_counter()
        sampling = dataclasses.replace(self.sampling, seed=(self.sampling.seed * 1_000_003 + step) % 2**32)
        view = self.view(state.model)
        groups = self._play(view, self.groups, sampling, policy_version=step)
        for _ in range(self.objective.refills):
            missing = self.groups - sum(not _is_flat(group) for group in groups)
            if not missing:
                break
            groups += self._play(view, missing, sampling, policy_version=step)
        del view  # its memory is the update's
        groups, replaced = _chosen(groups, self.groups)
        episodes, trajectories = zip(*(pair for group in groups for pair in group), strict=True)
        played = time.perf_counter()
        self.keep(step, trajectories)
        batch = grpo_batch(episodes, trajectories, self.objective, self.shape, self.processor)
        found = rollout_scalars(trajectories) | {"rollout/replaced_groups": float(replaced)}
        scalars = mean_over_processes(found, weight=len(trajectories)) | {
            "timing_s/rollout": played - began,
            "timing_s/batch": time.perf_counter() - played,
        }
        return batch, scalars

    def get_state(self) -> dict[str, Any]:
        return self.samples.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.samples.set_state(state)

    def _play(self, view: RolloutView, count: int, sampling: Sampling, policy_version: int) -> list[Group]:
        """Plays the next samples."""
        samples = list(itertools.islice(self.samples, count))
        begin = partial(Episode, protocol=self.protocol, processor=self.processor, limits=self.limits, sampling=sampling)
        leaders = self.engine.pool.map(begin, samples)
        groups = [[leader.fork(member) for member in range(self.group_size)] for leader in leaders]
        for _ in self.engine.play(view, groups):
            pass
        return [[(episode, self._judged(episode, policy_version)) for episode in group] for group in groups]

    def _judged(self, episode: Episode, policy_version: int) -> Trajectory:
        trajectory = with_reward(
            episode.trajectory(
                stream="on_policy",
                policy_version=policy_version,
                banned_sha256=self.banned_sha256,
            ),
            self.reward,
        )
        return _with_length_penalty(trajectory, self.objective)


def cut_off(trajectory: Trajectory) -> bool:
    """Whether an episode ended for lack of room, or in a turn that its budget cut off."""
    error = trajectory.turns[-1].error if trajectory.turns else None
    return trajectory.end_reason == "overflow" or (error is not None and error[0] == "too_long")


def grpo_batch(
    episodes: Sequence[Episode],
    trajectories: Sequence[Trajectory],
    objective: GRPOConfig,
    shape: BatchShape,
    processor: Processor,
) -> Batch:
    """One device batch of played episodes, with `old_logprobs` (the sampler's) and `advantages` for every token."""
    advantages = group_advantages(
        [t.reward for t in trajectories],
        [t.group_id for t in trajectories],
        scale=objective.scale_advantages,
        epsilon=objective.epsilon,
        ddof=objective.ddof,
    )
    examples = []
    for episode, trajectory, advantage in zip(episodes, trajectories, advantages, strict=True):
        example = episode.example(
            old_logprobs=np.array([p or 0.0 for p in episode.logprobs], np.float32),
            advantages=np.full(len(episode.token_ids), advantage, np.float32),
        )
        if objective.mask_overlong and cut_off(trajectory):
            example = dataclasses.replace(example, loss_mask=np.zeros_like(example.loss_mask))
        examples.append(example)
    return pack(examples, shape, processor)


def rollout_scalars(trajectories: Sequence[Trajectory]) -> Scalars:
    """What practitioners watch: rewards by part, valid actions, answers, lengths, groups without a signal."""
    rewards = [t.reward for t in trajectories]
    parts = sorted({name for t in trajectories for name in t.rewards})
    written = [sum(t.loss_mask) for t in trajectories]
    return {
        "reward/mean": float(np.mean(rewards)),
        **{f"reward/{name}": float(np.mean([t.rewards[name] for t in trajectories])) for name in parts},
        "rollout/valid_action": float(np.mean([bool(t.turns) and t.turns[0].error is None for t in trajectories])),
        "rollout/answered": float(np.mean([t.predicted_answer is not None for t in trajectories])),
        "rollout/two_rounds": float(np.mean([len(t.turns) > 1 for t in trajectories])),
        "rollout/zero_variance_groups": zero_variance_share(rewards, [t.group_id for t in trajectories]),
        "rollout/tokens": float(np.mean(written)),
        "rollout/cut_off": float(np.mean([cut_off(t) for t in trajectories])),
    }


def _with_length_penalty(trajectory: Trajectory, objective: GRPOConfig) -> Trajectory:
    """The trajectory with the reward part `overlong`, where the objective has one."""
    if not objective.overlong_penalty:
        return trajectory
    penalty = length_penalty(sum(trajectory.loss_mask), objective.overlong_start, objective.overlong_end)
    rewards = trajectory.rewards | {"overlong": objective.overlong_penalty * penalty}
    return dataclasses.replace(trajectory, rewards=rewards)


def _is_flat(group: Group) -> bool:
    return zero_variance(trajectory.reward for _, trajectory in group)


def _chosen(groups: Sequence[Group], count: int) -> tuple[list[Group], int]:
    """So many of the groups in their order, without the first of those from which nothing is learnt.

    Returns:
      The groups, and how many were left out.
    """
    replaced = len(groups) - count
    out = [i for i, group in enumerate(groups) if _is_flat(group)][:replaced]
    return [group for i, group in enumerate(groups) if i not in out], replaced
