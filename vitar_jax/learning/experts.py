"""The expert's stream: finds the searches of a sample, chooses those of a step, and plays them as episodes.

A search is played by `Episode.add_turn` on a fork of its group's first episode, so its tokens, images and masks are those of a
policy that had written the same turns. The searches of a step follow from seed, sample and step alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from vitar_jax.data.traces import Trace, Traces, check_trace
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import play_demonstration
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import DataError, TooLongError
from vitar_jax.learning.grpo_loss import refuse
from vitar_jax.learning.mixtures import MixtureConfig
from vitar_jax.runtime.registry import Registry, is_address

SEARCHES: Registry[Callable[[Sample], Sequence[Trace]]] = Registry("function of searches")
_UNBOUNDED = 2**31 - 1
_FIRST_SAMPLES = 100  # samples without a search, from the start on, that end a run which may skip them


@dataclasses.dataclass(frozen=True)
class ExpertsConfig(MixtureConfig):
    """The expert's episodes of a stage. `MixtureConfig` has the keys of the loss.

    Attributes:
      traces: Sources of searches: folders with a `traces.jsonl`, such files, and functions from a Sample to its `Trace`s, as
        `package.module:name` or `FILE.py:name`.
      replay: Learns from the policy's earlier episodes of the same sample instead, "newest" or "best" by reward, under the
        log-probabilities that they were drawn with. A sample that was not played before has none.
      searches: Number of the expert's episodes per sample.
      draw: Choice among more searches than these: the first ones, random ones, or random ones of which half are right, if there
        are both ("mixed").
      missing: Whether a sample with fewer searches, or with dialogues over the limits, ends the run, or is learnt from with
        those that it has ("skip"), also without any. `expert/missing` is the share of searches that were not there.
    """

    traces: tuple[str, ...] = ()
    replay: Literal["", "newest", "best"] = ""
    searches: int = 6
    draw: Literal["first", "random", "mixed"] = "first"
    missing: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = {
            "experts.traces, experts.replay: set one of them": bool(self.traces) == bool(self.replay),
            "experts.searches: must be positive": self.searches < 1,
        }
        refuse(wrong)


class Searches:
    """The searches of samples, from files and functions.

    Raises:
      DataError: If a file is missing or damaged.
      ConfigError: If a function does not exist.
    """

    def __init__(self, entries: Sequence[str]):
        self._entries = [(entry, SEARCHES.find(entry) if is_address(entry) else Traces([entry])) for entry in entries]

    def __call__(self, sample: Sample, image: Image.Image) -> list[Trace]:
        """Returns the searches of a sample, in the order of the entries.

        Args:
          image: The sample's first image.

        Raises:
          DataError: If a search is malformed, or is of another image.
        """
        found: list[Trace] = []
        for entry, source in self._entries:
            if isinstance(source, Traces):
                found += source.check(sample, image)
                continue
            for trace in source(sample):
                if not isinstance(trace, Trace):
                    raise DataError(f"{entry}: sample {sample.sample_id}: got {type(trace).__name__}, expected a Trace")
                check_trace(trace, image, entry)
                found.append(trace)
        return found

    def inputs(self) -> dict[str, dict[str, Any]]:
        """Describes the files, by their keys in an objective; see `Objective.inputs`. A function has no description."""
        opened = [(n, entry, source) for n, (entry, source) in enumerate(self._entries) if isinstance(source, Traces)]
        return {
            f"experts.traces[{n}]": {"name": entry, "samples": len(source), "sha256": source.fingerprint()}
            for n, entry, source in opened
        }

    def held(self) -> str:
        """Describes which samples have searches."""
        opened = [(entry, source) for entry, source in self._entries if isinstance(source, Traces)]
        held = [f"{entry} has those of {len(source)} samples, such as {next(iter(source), '')!r}" for entry, source in opened]
        return "; ".join(held) or ", ".join(entry for entry, _ in self._entries)


class Need(NamedTuple):
    """What a dialogue needs: its tokens, the tokens of its longest turn, its images and its turns."""

    tokens: int
    turn_tokens: int
    images: int
    turns: int


@dataclasses.dataclass
class GroupSearches:
    """The expert's episodes of a group, with their searches.

    Attributes:
      replayed: Records of earlier episodes, in place of searches.
      too_long: What each dialogue over the limits needs.
      problems: Messages of what else is missing.
    """

    episodes: list[tuple[Episode, Trace]] = dataclasses.field(default_factory=list)
    replayed: list[Trajectory] = dataclasses.field(default_factory=list)
    too_long: list[Need] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


class ExpertStream:
    """Plays the searches of a stage.

    Args:
      seed: Seed of the draws.
    """

    def __init__(self, config: ExpertsConfig, seed: int):
        self._config, self._seed = config, seed
        self._searches = Searches(config.traces)
        self._began = False
        self._named: set[str] = set()
        self._without = 0  # samples so far, as long as none had a search

    def start(self, groups: Sequence[Sequence[Episode]], step: int, pool: Executor) -> list[Future[GroupSearches]]:
        """Starts to play the searches of groups on a pool. Call it before the groups are played.

        The first call waits for the searches, so that an error ends the run before the first rollout.

        Raises:
          DataError, TooLongError: As `finish`, at the first call.
        """
        leaders = [group[0].fork(len(group), group[0].occurrence) for group in groups]
        started = [pool.submit(self._play, leader, step) for leader in leaders]
        if not self._began:
            self._began = True
            self._check([future.result() for future in started])
        return started

    def finish(self, started: Sequence[Future[GroupSearches]]) -> list[GroupSearches]:
        """Waits for the searches of groups.

        Raises:
          DataError: If searches are missing and the config does not allow it, or if no sample has any.
          TooLongError: If dialogues exceed the limits and the config does not allow it.
        """
        groups = [future.result() for future in started]
        self._check(groups)
        self._check_any(groups)
        return groups

    def keep(self, trajectories: Sequence[Trajectory]) -> None:
        """Does nothing: the expert learns nothing from a step."""

    def _check(self, groups: Sequence[GroupSearches]) -> None:
        """Raises the errors of `finish`, or logs each of them once if the config allows them."""
        needs = [need for group in groups for need in group.too_long]
        problems = [problem for group in groups for problem in group.problems]
        if needs:
            played = sum(len(group.episodes) + len(group.too_long) for group in groups)
            most = Need(*map(max, zip(*needs, strict=True)))
            over = (
                f"experts.traces: {len(needs)} of {played} dialogues exceed the limits; they need up to {most.tokens} tokens "
                f"(limits.tokens), {most.turn_tokens} tokens per turn (limits.turn_tokens), {most.images} images "
                f"(limits.images) and {most.turns} turns (max_turns of the protocol)"
            )
            if self._config.missing == "error":
                raise TooLongError(over)
            problems.append(over)
        if problems and self._config.missing == "error":
            raise DataError(f"{problems[0]}; experts.missing='skip' allows it")
        for problem in problems:
            if problem not in self._named:
                self._named.add(problem)
                logging.warning("%s", problem)

    def _check_any(self, groups: Sequence[GroupSearches]) -> None:
        """Raises DataError if the first samples all lack searches: the traces are then of another data set."""
        if self._without >= 0:
            found = any(group.episodes or group.too_long for group in groups)
            self._without = -1 if found else self._without + len(groups)
        if self._without >= _FIRST_SAMPLES:
            raise DataError(f"experts.traces: none of the first {self._without} samples has a search; {self._searches.held()}")

    def _play(self, leader: Episode, step: int) -> GroupSearches:
        sample, config = leader.sample, self._config
        if not leader.images:
            raise DataError(f"sample {sample.sample_id}: has no image, which an expert's search needs")
        found = self._searches(sample, leader.images[0].pixels)
        played = GroupSearches()
        if len(found) < config.searches:
            where = f"sample {sample.sample_id}: got {len(found)} searches, expected experts.searches={config.searches}"
            played.problems.append(f"{where}; {self._searches.held()}")
        draw = np.random.default_rng([self._seed % 2**32, step, leader.draw_key])
        for place, trace in enumerate(choose(found, config, draw)):
            episode = _play_search(trace, leader.fork(leader.member + place, leader.occurrence))
            if isinstance(episode, Need):
                played.too_long.append(episode)
            else:
                played.episodes.append((episode, trace))
        return played


def choose(traces: Sequence[Trace], config: ExpertsConfig, draw: np.random.Generator) -> list[Trace]:
    """Chooses the searches of a step, in their order."""
    count = min(config.searches, len(traces))
    if config.draw == "first" or count == len(traces):
        return list(traces[:count])
    order = draw.permutation(len(traces)).tolist()
    if config.draw == "mixed":
        right = [index for index in order if traces[index].right]
        wrong = [index for index in order if not traces[index].right]
        rights = min(max(count // 2, count - len(wrong)), len(right))
        order = right[:rights] + wrong[: count - rights]
    return [traces[index] for index in sorted(order[:count])]


def _play_search(trace: Trace, episode: Episode) -> Episode | Need:
    """Plays a search on an episode that has no turn. Returns what its dialogue needs if it exceeds the limits.

    Raises:
      DataError: If a turn fails. The message names the search.
    """
    shown, limits, turns = trace.demonstration(), episode.limits, episode.protocol.max_turns
    begun = episode.fork(episode.member, episode.occurrence)
    try:
        if turns == 1 or len(shown.looks) < turns:
            play_demonstration(shown, episode)
            longest = max(turn.end - turn.start for turn in episode.turns)
            if len(episode.token_ids) <= limits.tokens and longest <= limits.turn_tokens:
                return episode
    except TooLongError:
        pass
    except DataError as error:
        raise DataError(f"search {trace.search}: {error}") from error
    begun.limits = Limits(_UNBOUNDED, _UNBOUNDED, _UNBOUNDED)
    begun.protocol = dataclasses.replace(begun.protocol, max_turns=max(turns, len(shown.looks) + 1) if turns > 1 else 1)
    play_demonstration(shown, begun)
    longest = max(turn.end - turn.start for turn in begun.turns)
    return Need(len(begun.token_ids), longest, len(begun.images), len(begun.turns))
