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
from vitar_jax.learning.advantages import group_advantages
from vitar_jax.learning.metrics import Scalars, rollout_scalars
from vitar_jax.learning.objectives import GRPOConfig
from vitar_jax.learning.rewards import Rewards
from vitar_jax.learning.train_state import TrainState
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
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
    rewards: Rewards
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
        records = [
            episode.trajectory(stream="on_policy", policy_version=step, banned_sha256=self.banned_sha256)
            for episode in episodes
        ]
        trajectories, failures = zip(*self.engine.pool.map(self.rewards, records), strict=True)
        rewarded = time.perf_counter()
        self.keep(step, trajectories)
        batch = grpo_batch(episodes, trajectories, self.objective, self.shape, self.processor)
        scalars = rollout_scalars(trajectories, failures, self.rewards.parts) | {
            "timing_s/rollout": played - began,
            "timing_s/reward": rewarded - played,
            "timing_s/batch": time.perf_counter() - rewarded,
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
    """One device batch of played episodes, with `old_logprobs` and `advantages` for every token.

    An episode without a reward has no token under the loss mask.
    """
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
        learnt = example.loss_mask & (trajectory.rewards is not None)
        examples.append(dataclasses.replace(example, loss_mask=learnt))
    return pack(examples, shape, processor)
