"""GRPO feeds the loop by playing: samples, groups of episodes, rewards, advantages, one device batch."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.learning.advantages import group_advantages, zero_variance_share
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


@dataclasses.dataclass(frozen=True)
class GRPOBatches:
    """Plays each sample `group_size` times with the newest weights and packs what was played.

    Attributes:
      samples: iterator of lists of samples, with `get_state` and `set_state` (grain's).
      view: makes the weights' rollout view.
      keep: called with the trajectories of every step.
      seed: of the run; each step's seed follows from it and the step.
    """

    samples: Any
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
        groups = self._groups(next(self.samples), sampling)
        for _ in self.engine.play(self.view(state.model), groups):
            pass
        episodes = [episode for group in groups for episode in group]
        played = time.perf_counter()
        trajectories = [
            with_reward(
                episode.trajectory(
                    stream="on_policy",
                    policy_version=step,
                    banned_sha256=self.banned_sha256,
                ),
                self.reward,
            )
            for episode in episodes
        ]
        self.keep(step, trajectories)
        batch = grpo_batch(episodes, trajectories, self.objective, self.shape, self.processor)
        scalars = mean_over_processes(rollout_scalars(trajectories), weight=len(trajectories)) | {
            "timing_s/rollout": played - began,
            "timing_s/batch": time.perf_counter() - played,
        }
        return batch, scalars

    def get_state(self) -> dict[str, Any]:
        return self.samples.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.samples.set_state(state)

    def _groups(self, samples: Iterable[Sample], sampling: Sampling) -> list[list[Episode]]:
        begin = partial(Episode, protocol=self.protocol, processor=self.processor, limits=self.limits, sampling=sampling)
        leaders = self.engine.pool.map(begin, samples)
        return [[leader.fork(member) for member in range(self.group_size)] for leader in leaders]


def grpo_batch(
    episodes: Sequence[Episode],
    trajectories: Sequence[Trajectory],
    objective: GRPOConfig,
    shape: BatchShape,
    processor: Processor,
) -> Batch:
    """One device batch of played episodes, with `old_logprobs` and `advantages` for every token."""
    advantages = group_advantages(
        [t.reward for t in trajectories],
        [t.group_id for t in trajectories],
        scale=objective.scale_advantages,
        epsilon=objective.epsilon,
        ddof=objective.ddof,
    )
    examples = [
        episode.example(
            old_logprobs=np.array([p or 0.0 for p in episode.logprobs], np.float32),
            advantages=np.full(len(episode.token_ids), advantage, np.float32),
        )
        for episode, advantage in zip(episodes, advantages, strict=True)
    ]
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
    }
