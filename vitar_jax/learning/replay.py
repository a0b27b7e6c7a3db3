"""Replay: the run's own earlier episodes as the expert's, under the log-probabilities that they were drawn with.

Every process writes the policy's episodes of each step as token records, and reads those of all processes. A record becomes an
example without a detour through text. After a restart, the records of later steps are removed, so that the episodes of a step
do not depend on interruptions.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import jax

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import JSONL, TrajectoryWriter, file_of
from vitar_jax.errors import DataError
from vitar_jax.learning.experts import ExpertsConfig, GroupSearches

_CHOSEN_BY = ("sample_id", "question", "rewards", "group_id", "member", "policy_version")


class _Place(NamedTuple):
    """Where a record is, with what it is chosen by."""

    version: int
    reward: float
    group_id: str
    member: int
    path: Path
    start: int  # byte


class Replay:
    """The earlier episodes of a stage, by sample. Keeps only where each record begins.

    Args:
      directory: Directory of the records. They grow by the policy's episodes of every step.
      since: Step that the stage starts or resumes from. Removes the records of this and later steps.
    """

    def __init__(self, config: ExpertsConfig, directory: Path, since: int):
        process, count = jax.process_index(), jax.process_count()
        self._config, self._directory = config, directory
        self._writer = TrajectoryWriter(directory, process, since=since)
        if process == 0:  # an earlier start may have had more processes
            more = count
            while (directory / file_of(more, JSONL)).exists():
                TrajectoryWriter(directory, more, since=since)
                more += 1
        self._places: dict[tuple[str, str], list[_Place]] = defaultdict(list)
        self._indexed: dict[Path, int] = {}  # bytes

    def start(self, groups: Sequence[Sequence[Episode]], step: int, pool: Executor) -> list[Future[GroupSearches]]:
        """Starts to read the episodes of groups, before the groups are played. All processes have written the steps before."""
        self._index()
        leaders = [group[0].fork(len(group), group[0].occurrence) for group in groups]
        return [pool.submit(self._read, leader, step) for leader in leaders]

    def finish(self, started: Sequence[Future[GroupSearches]]) -> list[GroupSearches]:
        """Waits for the episodes of groups. A sample that was not played before has none."""
        return [future.result() for future in started]

    def keep(self, trajectories: Sequence[Trajectory]) -> None:
        """Writes the policy's episodes of a step."""
        self._writer.write(trajectory for trajectory in trajectories if trajectory.stream == "on_policy")

    def _index(self) -> None:
        """Indexes the records that were written since the last call."""
        for path in sorted(self._directory.glob(JSONL.replace(".", "*."))):
            start = self._indexed.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    record = _parsed(line, path)
                    rewards = record["rewards"]
                    if rewards is not None:
                        place = _Place(
                            record["policy_version"],
                            sum(rewards.values()),
                            record["group_id"],
                            record["member"],
                            path,
                            start,
                        )
                        self._places[record["sample_id"], record["question"]].append(place)
                    start += len(line)
            self._indexed[path] = start

    def _read(self, leader: Episode, step: int) -> GroupSearches:
        found = GroupSearches()
        for record in self._earlier(leader, step):
            if len(found.replayed) == self._config.searches:
                break
            shown = record.metadata | {"replayed_from": record.policy_version}
            member = leader.member + len(found.replayed)
            group = dict(group_id=leader.group_id, member=member, policy_version=step)
            found.replayed.append(dataclasses.replace(record, stream="expert", advantage=None, metadata=shown, **group))
        return found

    def _earlier(self, leader: Episode, step: int) -> Iterator[Trajectory]:
        """Yields the earlier episodes of the same prompt, in the order of the config."""
        places = self._places.get((leader.sample.sample_id, leader.sample.question), ())
        earlier, best = [place for place in places if place.version < step], self._config.replay == "best"
        for place in sorted(earlier, key=lambda p: (-p.reward if best else 0.0, -p.version, p.group_id, p.member)):
            with place.path.open("rb") as file:
                file.seek(place.start)
                line = file.readline()
            record = Trajectory.from_json(_parsed(line, place.path), self._directory / "images")
            prompt = tuple(leader.token_ids)
            images = [image.sha256 for image in leader.images]
            if record.token_ids[: len(prompt)] == prompt and [i.sha256 for i in record.images[: len(images)]] == images:
                yield record


def _parsed(line: bytes, path: Path) -> dict:
    try:
        record = json.loads(line)
        return record | {name: record[name] for name in _CHOSEN_BY}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: a line is damaged ({error!r})") from error
