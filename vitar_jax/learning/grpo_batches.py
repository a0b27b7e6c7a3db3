"""Batches of GRPO: plays groups of episodes, rewards them, computes advantages and packs batches."""

import dataclasses
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from vitar_jax.data.skipping import Skips, attempt, skipped_scalars
from vitar_jax.data.sources import Source
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Stream, Trajectory
from vitar_jax.learning.advantages import (
    baseline_advantages,
    earned_above,
    group_advantages,
    length_penalty,
    pooled_advantages,
    zero_variance,
)
from vitar_jax.learning.counterfactual import counterfactual_advantages
from vitar_jax.learning.experts import ExpertStream, GroupSearches
from vitar_jax.learning.metrics import Scalars, counterfactual_scalars, expert_scalars, rollout_scalars
from vitar_jax.learning.replay import Replay
from vitar_jax.learning.rewards import Failure, Rewards
from vitar_jax.learning.traced_masks import answered_masks
from vitar_jax.learning.train_state import TrainState
from vitar_jax.processing.packing import Batch, BatchShape, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.groups import fork_groups
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.distributed import gather_json, mean_over_processes

if TYPE_CHECKING:
    from vitar_jax.learning.grpo import GRPO


class Member(NamedTuple):
    """An episode of a group, with its reward or the failure of its reward. A replayed one has only its record."""

    episode: Episode | None
    trajectory: Trajectory
    failure: Failure | None


Group = list[Member]  # episodes of one sample: the policy's, those without the image, then the expert's


class Played(NamedTuple):
    """The episodes of a group: the policy's, its counterfactual members, and the expert's if the objective has experts."""

    group: list[Episode]
    without: list[Episode]
    searches: GroupSearches | None = None


@dataclasses.dataclass
class GRPOBatches:
    """Batches of episodes: each sample is played `group_size` times with the newest weights, beside an expert's episodes.

    Attributes:
      samples: This process's infinite stream of samples.
      groups: Number of this process's groups per batch.
      player: Makes a player from the weights in training.
      keep: Records the trajectories of a step. The streams of a group take turns, so that the first few show both.
      taken: Number of samples read so far.
      skips: Samples that could not be played, which the next ones replace.
      experts: Plays the expert's episodes or replays earlier ones, if the objective has experts.
      change: Takes the image from a sample, if the objective has counterfactual members.
    """

    samples: Source
    groups: int
    player: Callable[[Any, Sampling], Player]
    sampling: Sampling
    shape: BatchShape
    rewards: Rewards
    objective: "GRPO"
    keep: Callable[[int, Sequence[Trajectory]], None]
    taken: int = 0
    skips: Skips = dataclasses.field(default_factory=Skips)
    experts: ExpertStream | Replay | None = None
    change: Callable[[Sample], Sample] | None = None

    def next(self, state: TrainState) -> tuple[Batch, Scalars]:
        step = int(state.step)
        began = time.perf_counter()
        sampling = dataclasses.replace(self.sampling, seed=(self.sampling.seed * 1_000_003 + step) % 2**32)
        player = self.player(state.model, sampling)
        engine = player.engine
        passes, accepted = engine.stats.passes, engine.stats.accepted
        rewarding = waiting = 0.0
        groups: list[Group] = []
        seen: Counter[int] = Counter()
        for _ in range(1 + self.objective.refills):
            missing = self.groups - sum(not _is_flat(group, self.objective) for group in groups)
            played, waited = self._play(player, missing, seen, step)
            ended = time.perf_counter()
            groups += self._rewarded(player, played, policy_version=step)
            rewarding += time.perf_counter() - ended
            waiting += waited
        processor, protocol = player.processor, player.protocol
        del player  # frees the memory of its weights and cache for the update
        groups, replaced = _chosen(groups, self.groups, self.objective)
        episodes, trajectories, failures = zip(*(one for group in groups for one in group), strict=True)
        rewarded = time.perf_counter()
        trajectories = with_advantages(trajectories, self.objective)
        self.keep(step, _taking_turns(trajectories))
        batch = grpo_batch(episodes, trajectories, self.objective, self.shape, processor, step)
        ours = [index for index, trajectory in enumerate(trajectories) if trajectory.stream == "on_policy"]
        scalars = {
            **rollout_scalars(
                [trajectories[index] for index in ours],
                [failures[index] for index in ours],
                self._parts,
                gazes=protocol.max_turns > 2 or self.experts is not None,
                masks=protocol.makes_masks,
            ),
            **mean_over_processes({"rollout/replaced_groups": [replaced]}),
            **skipped_scalars(self.skips.get_state()),
            "timing_s/rollout": rewarded - began - rewarding - waiting,
            "timing_s/reward": rewarding,
            "timing_s/batch": time.perf_counter() - rewarded,
        }
        if engine.config.draft_tokens:
            scalars |= mean_over_processes(
                {
                    "rollout/decode_passes": [engine.stats.passes - passes],
                    "rollout/accepted_tokens": [engine.stats.accepted - accepted],
                }
            )
        if self.objective.counterfactual is not None:
            scalars |= counterfactual_scalars(trajectories, self._parts, self.objective.counterfactual.weight)
        if self.experts is not None and self.objective.experts is not None:
            self.experts.keep(trajectories)
            theirs = [t for t in trajectories if t.stream == "expert"]
            searches = self.objective.experts.searches
            absent = [1 - sum(one.trajectory.stream == "expert" for one in group) / searches for group in groups]
            scalars |= expert_scalars(theirs, absent, self.rewards.parts) | {"timing_s/experts": waiting}
        return batch, scalars

    def get_state(self) -> dict[str, int]:
        return {"taken": self.taken, **self.skips.get_state()}

    def set_state(self, state: dict[str, int]) -> None:
        self.taken = state["taken"]
        self.skips.set_state(state)

    @property
    def _parts(self) -> list[str]:
        return [*self.rewards.parts, *(["overlong"] if self.objective.overlong_penalty else [])]

    def _play(
        self, player: Player, count: int, seen: Counter[int], step: int
    ) -> tuple[list[Played], float]:
        """Plays a group of episodes for each of the next `count` samples that can be played, and the expert's meanwhile.

        Counterfactual members of a group have the indices after those of `group_size`, and the expert's those after them.

        Args:
          seen: Number of the step's groups so far; see `fork_groups`, which counts over all processes.

        Returns:
          The groups, and the seconds that the expert's episodes took longer than the policy's.
        """
        leaders: list[tuple[Episode, Episode | None]] = []
        while missing := count - len(leaders):
            numbers = range(self.taken, self.taken + missing)
            self.taken += missing
            begun = player.pool.map(lambda number: attempt(partial(self._begin, player, number)), numbers)
            leaders += [both for one in begun if (both := self.skips.accept(one)) is not None]
        groups = fork_groups([leader for leader, _ in leaders], self.objective.group_size, seen)
        without = [self._fork_changed(changed, group) for (_, changed), group in zip(leaders, groups, strict=True)]
        started = None
        if self.experts is not None:
            started = self.experts.start([a + b for a, b in zip(groups, without, strict=True)], step, player.pool)
        if groups:  # to play no groups would still allocate a cache
            for _ in player.play([members for both in zip(groups, without, strict=True) for members in both if members]):
                pass
        if self.experts is None or started is None:
            return [Played(*both) for both in zip(groups, without, strict=True)], 0.0
        began = time.perf_counter()
        finished = self.experts.finish(started)
        return [Played(*all_) for all_ in zip(groups, without, finished, strict=True)], time.perf_counter() - began

    def _begin(self, player: Player, number: int) -> tuple[Episode, Episode | None]:
        """Begins the episode of a sample, and that of the sample without its image, if the objective has such members."""
        sample = self.samples[number]
        self.rewards.check(sample)
        return player.begin(sample), player.begin(self.change(sample)) if self.change else None

    def _fork_changed(self, changed: Episode | None, group: Sequence[Episode]) -> list[Episode]:
        """Returns the counterfactual members of a group, given their first episode."""
        if changed is None or self.objective.counterfactual is None:
            return []
        members = range(len(group), len(group) + self.objective.counterfactual.episodes)
        return [changed.fork(member, group[0].occurrence) for member in members]

    def _rewarded(self, player: Player, groups: Sequence[Played], policy_version: int) -> list[Group]:
        """Rewards the episodes of groups."""
        records = [[(e, player.record(e, policy_version=policy_version)) for e in one.group] for one in groups]
        for group, (_, without, searches) in zip(records, groups, strict=True):
            for episode in without:
                assert self.objective.counterfactual is not None
                record = player.record(episode, stream="counterfactual", policy_version=policy_version)
                shown = {"intervention": self.objective.counterfactual.intervention}
                group.append((episode, dataclasses.replace(record, metadata=record.metadata | shown)))
            for episode, trace in searches.episodes if searches else ():
                record = player.record(episode, stream="expert", policy_version=policy_version)
                shown = {
                    "search": trace.search,
                    "modes": [look.mode for look in trace.looks],
                    "confidences": [look.after for look in trace.looks],
                }
                group.append((episode, dataclasses.replace(record, metadata=record.metadata | shown)))
        rewarded = iter(player.pool.map(self.rewards, (record for group in records for _, record in group)))
        members: list[Group] = []
        for group, (_, _, searches) in zip(records, groups, strict=True):
            played = [(episode, *next(rewarded)) for episode, _ in group]
            members.append([Member(e, _with_length_penalty(record, self.objective), failure) for e, record, failure in played])
            members[-1] += [Member(None, record, None) for record in (searches.replayed if searches else ())]
        return members


def with_advantages(trajectories: Sequence[Trajectory], objective: "GRPO") -> list[Trajectory]:
    """Returns the trajectories of complete groups with their advantages; None for those that the objective does not use."""
    rewards, ids = np.array([t.reward for t in trajectories]), np.array([t.group_id for t in trajectories])
    expert, without = (np.array([t.stream == s for t in trajectories], bool) for s in ("expert", "counterfactual"))
    ours = ~expert & ~without
    scaling: Mapping[str, Any] = dict(scale=objective.scale_advantages, epsilon=objective.epsilon, ddof=objective.ddof)
    scope = "union" if objective.experts is None else objective.experts.scope
    std = _batch_std(rewards[ours if scope != "union" else ~without], objective)
    if objective.counterfactual is not None:
        advantages = np.zeros(len(rewards))
        played, among = rewards[~expert], without[~expert]
        config = objective.counterfactual
        advantages[~expert] = counterfactual_advantages(played, ids[~expert], among, config, **scaling, std=std)
    elif scope == "union":
        advantages = group_advantages(rewards, ids, **scaling, std=std)
    else:
        advantages = np.zeros(len(rewards), np.float32)
        advantages[ours] = group_advantages(rewards[ours], ids[ours], **scaling, std=std)
    theirs, their_ids = rewards[expert], ids[expert]
    match scope:
        case "stream":
            advantages[expert] = group_advantages(theirs, their_ids, **scaling, std=_batch_std(theirs, objective))
        case "policy":
            advantages[expert] = baseline_advantages(theirs, their_ids, rewards[ours], ids[ours], **scaling, std=std)
        case "batch":
            advantages[expert] = pooled_advantages(theirs, _known_of_all(theirs), **scaling)
    unused = set()
    if objective.experts is not None and objective.experts.use == "where_stuck":
        unused = {t.group_id for t in trajectories if t.stream == "on_policy" and _is_right(t)}
    left_out = np.array([t.stream == "expert" and t.group_id in unused for t in trajectories], bool)
    if objective.counterfactual is not None and not objective.counterfactual.learn:
        left_out |= without
    return [
        dataclasses.replace(t, advantage=None if out else float(a))
        for t, a, out in zip(trajectories, advantages, left_out, strict=True)
    ]


def _batch_std(rewards: np.ndarray, objective: "GRPO") -> float | None:
    if not objective.batch_std:
        return None
    known = _known_of_all(rewards)
    return float(np.std(known, ddof=objective.ddof)) if len(known) > objective.ddof else 0.0


def _known_of_all(rewards: np.ndarray) -> np.ndarray:
    """Returns the rewards of all processes. Sorted, so that rounding does not depend on which process played which group."""
    return np.sort([reward for own in gather_json(rewards[~np.isnan(rewards)].tolist()) for reward in own])


def _is_right(trajectory: Trajectory) -> bool:
    return exact_match(trajectory.predicted_answer, *trajectory.gold_answers)


def grpo_batch(
    episodes: Sequence[Episode | None],
    trajectories: Sequence[Trajectory],
    objective: "GRPO",
    shape: BatchShape,
    processor: Processor,
    step: int = 0,
) -> Batch:
    """Packs episodes into a batch, with `old_logprobs` (the sampler's log-probabilities) and `advantages` for every token.

    The old log-probabilities of a search are 0, and those of a replayed episode its own. With experts, `expert` is 1 for the
    tokens of both; see `mixtures.Streams`.
    The loss mask is empty for episodes without a reward or an advantage and, with `mask_overlong`, for cut-off episodes of the
    policy. Counterfactual members that are not learnt from have no row.

    If the shape has masks, the policy's episode with the highest advantage in each group also learns the masks of its answer.

    Args:
      episodes: None for a replayed episode, whose trajectory is read instead.
      trajectories: The episodes' trajectories, from `with_advantages`.
      step: Step of the batch, which determines the weight of a supervised term.
    """
    experts = objective.experts
    best = {} if shape.masks is None else _best_of_groups(trajectories)
    examples = []
    for number, (episode, trajectory) in enumerate(zip(episodes, trajectories, strict=True)):
        if trajectory.stream == "counterfactual" and trajectory.advantage is None:
            continue
        full = partial(np.full, len(trajectory.token_ids), dtype=np.float32)
        expert = trajectory.stream == "expert"
        extras = {"old_logprobs": np.array([p or 0.0 for p in trajectory.logprobs], np.float32)}
        extras["advantages"] = full(0.0 if trajectory.advantage is None else trajectory.advantage)
        if experts is not None:
            extras["expert"] = full(expert)
            if experts.supervises:
                extras["supervised"] = full(expert and (experts.supervise == "all" or _is_right(trajectory)))
                extras["mu"] = full(experts.mu(step))
        example = trajectory.example(processor, **extras) if episode is None else episode.example(**extras)
        if shape.masks is not None and best.get(trajectory.group_id) == number:
            seeds = trajectory.sampling.seed, step, zlib.crc32(trajectory.group_id.encode())
            masks = answered_masks(trajectory, np.random.default_rng(seeds), shape.masks)
            example = dataclasses.replace(example, masks=masks)
        left_out = trajectory.rewards is None or trajectory.advantage is None
        left_out |= objective.mask_overlong and trajectory.cut_off and not expert
        examples.append(dataclasses.replace(example, loss_mask=example.loss_mask & (not left_out)))
    return pack(examples, shape, processor)


def _best_of_groups(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Returns the index of each group's episode with the highest advantage, the first of equals, among the policy's."""
    best: dict[str, int] = {}
    for number, one in enumerate(trajectories):
        if one.stream != "on_policy" or one.advantage is None or one.rewards is None:
            continue
        known = trajectories[best.setdefault(one.group_id, number)].advantage
        if known is not None and one.advantage > known:
            best[one.group_id] = number
    return best


def _with_length_penalty(trajectory: Trajectory, objective: "GRPO") -> Trajectory:
    """Returns an episode of the policy with the reward part `overlong`, if the objective has that part."""
    if not objective.overlong_penalty or trajectory.rewards is None or trajectory.stream == "expert":
        return trajectory
    penalty = length_penalty(sum(trajectory.loss_mask), objective.overlong_start, objective.overlong_end)
    rewards = trajectory.rewards | {"overlong": objective.overlong_penalty * penalty}
    return dataclasses.replace(trajectory, rewards=rewards)


def _taking_turns(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Reorders each group: an episode of the policy, one without the image, one of the expert, and so on."""
    found: list[Trajectory] = []
    for _, group in groupby(trajectories, key=lambda t: t.group_id):
        members = list(group)
        streams = ([t for t in members if t.stream == stream] for stream in get_args(Stream))
        found += [t for both in zip_longest(*streams) for t in both if t is not None]
    return found


def _is_flat(group: Group, objective: "GRPO") -> bool:
    """Returns whether all advantages of a group are 0. With the scope "batch", equal searches count as 0."""
    experts = objective.experts
    ours = [one.trajectory for one in group if one.trajectory.stream == "on_policy"]
    theirs = [one.trajectory for one in group if one.trajectory.stream == "expert"]
    pay = [t.reward for t in ours]
    if (counterfactual := objective.counterfactual) is not None:
        without = [one.trajectory.reward for one in group if one.trajectory.stream == "counterfactual"]
        pay = earned_above(pay, without, counterfactual.weight)
    if experts is None or (experts.use == "where_stuck" and experts.scope != "union" and any(map(_is_right, ours))):
        return zero_variance(pay)
    if experts.scope == "union" or (experts.scope == "policy" and experts.weight and counterfactual is None):
        return zero_variance(t.reward for t in (*ours, *theirs))
    flat = zero_variance(pay)
    return flat and (not experts.weight or zero_variance(t.reward for t in theirs))


def _chosen(groups: Sequence[Group], count: int, objective: "GRPO") -> tuple[list[Group], int]:
    """Selects `count` groups in their order, leaving out the first groups whose advantages are all 0.

    Returns:
      The groups, and the number of groups left out.
    """
    replaced = len(groups) - count
    out = [i for i, group in enumerate(groups) if _is_flat(group, objective)][:replaced]
    return [group for i, group in enumerate(groups) if i not in out], replaced
