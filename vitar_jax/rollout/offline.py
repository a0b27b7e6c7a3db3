"""Plays samples into files of trajectories. Resumes by sample, on any number of processes."""

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax
from tqdm import tqdm

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Stream, Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, file_of, read_records
from vitar_jax.errors import ConfigError, DataError, VitarError
from vitar_jax.processing.files import pixels_sha256
from vitar_jax.processing.sources import file_digest
from vitar_jax.runtime.crash_safe import atomic_replace, read_json_lines
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.prefetch import prefetch
from vitar_jax.runtime.progress import progress_bar

FAILURES = "failures.jsonl"
SETTINGS = "settings.json"
_NEWER = ("images",)  # settings that directories of older versions lack


class PlayerLike(Protocol):
    """The interface of players. `Player` plays a checkpoint, `EndpointPlayer` a model that others serve."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines how a sample is answered, as JSON."""
        ...

    @property
    def pool(self) -> Executor:
        """Threads that may call `begin`."""
        ...

    @property
    def workers(self) -> int:
        """Number of these threads."""
        ...

    def start(self) -> None:
        """Prepares to play, which may take long. Later calls do nothing."""
        ...

    def begin(self, sample: Sample, member: int = 0) -> Episode:
        """Begins the episode of a sample."""
        ...

    def play(self, groups: Iterable[Sequence[Episode]]) -> "Iterator[Episode | Failure] | Iterator[Episode]":
        """Plays groups to their end and yields each episode when it finishes, or the failure that ended it."""
        ...

    def record(self, episode: Episode, *, stream: Stream = "on_policy", policy_version: int = 0) -> Trajectory:
        """Returns the record of an episode."""
        ...


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sample whose episode could not begin, or which an endpoint did not finish.

    `kind` is the name of the error's class, or the kind of an `EndpointError`.
    """

    sample_id: str
    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Played:
    """Number of episodes that this process played, and seconds from the player's start to the end of the last episode."""

    episodes: int
    seconds: float


def play_samples(
    player: PlayerLike,
    samples: Iterable[Sample],
    *,
    count: int,
    directory: Path,
    title: str,
    settings: Mapping[str, Any] = {},
    begin: Callable[[Sample], Episode] | None = None,
    finish: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory,
) -> Played:
    """Plays the samples that `directory` does not hold yet and appends each trajectory when its episode finishes.

    Each process plays its shard into its own files, and returns when all processes have finished. A sample whose episode
    cannot begin, or fails, becomes a `Failure`; the next start retries it.

    Args:
      samples: `count` samples, the same in every process.
      title: Title of the progress bar.
      settings: Further settings that affect the result. All trajectories in a directory have the same value of these and of
        the player's settings.
      begin: Begins the episode of a sample, on the player's pool and ahead of time. If None, `player.begin`.
      finish: Completes a trajectory before it is written, for instance with its rewards.

    Raises:
      ConfigError: If the directory holds trajectories of other settings.
      DataError: If two samples have one id, or if the directory holds another sample under the id of a sample.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _stamp(directory / SETTINGS, {**player.settings, **settings})
    process, processes = jax.process_index(), jax.process_count()
    writer = TrajectoryWriter(directory, process)
    done = {record["sample_id"]: _Known.of(record) for record in read_records(directory)}
    if is_main():
        for old in _failure_files(directory):
            old.unlink()
    wait_for_all("finished samples are known")
    begin = begin or player.begin
    digests: dict[str, str] = {}

    def attempt(sample: Sample) -> Episode | Failure:
        digests[sample.sample_id] = sample_digest(sample)
        try:
            return begin(sample)
        except VitarError as error:
            return Failure(sample.sample_id, type(error).__name__, str(error))

    mine = islice(_waiting(samples, done, directory), process, None, processes)
    begun = prefetch(player.pool, attempt, mine, depth=2 * player.workers)
    shard = len(range(process, count - len(done), processes))
    episodes, tokens, seconds = 0, 0, 0.0
    with (
        (directory / file_of(process, FAILURES)).open("w", buffering=1) as failures,
        progress_bar(title, unit="episode", total=len(done) + shard, initial=len(done)) as bar,
    ):
        player.start()
        ready = time.perf_counter()
        for episode in player.play(_playable(begun, failures, bar)):
            if isinstance(episode, Failure):
                _note_failure(episode, failures, bar)
                continue
            digest = digests.pop(episode.sample.sample_id, "")
            trajectory = finish(dataclasses.replace(player.record(episode), sample_sha256=digest))
            writer.write([trajectory])
            episodes += 1
            tokens += sum(trajectory.loss_mask)
            seconds = time.perf_counter() - ready
            bar.set_postfix({"tokens/s": f"{tokens / seconds:.0f}"}, refresh=False)
            bar.update()
    wait_for_all("all samples are played")
    return Played(episodes, seconds)


def read_failures(directory: Path) -> list[Failure]:
    """Returns the failures of the last start, of all processes."""
    return [
        failure for path in _failure_files(directory) for failure in read_json_lines(path, lambda record: Failure(**record))
    ]


def kinds(failures: Iterable[Failure]) -> str:
    """Returns the counts by kind as text: "ImageError 2, DataError 1", or "none"."""
    return ", ".join(f"{kind} {n}" for kind, n in Counter(f.kind for f in failures).most_common()) or "none"


def _playable(begun: Iterable[Episode | Failure], failures: TextIO, bar: tqdm) -> Iterator[list[Episode]]:
    """Yields each episode as a group of one, and writes failures to their file."""
    for one in begun:
        if isinstance(one, Episode):
            yield [one]
        else:
            _note_failure(one, failures, bar)


def _note_failure(failure: Failure, failures: TextIO, bar: tqdm) -> None:
    failures.write(json.dumps(dataclasses.asdict(failure)) + "\n")
    bar.update()


def _failure_files(directory: Path) -> list[Path]:
    return sorted(directory.glob(FAILURES.replace(".", "*.")))


@dataclasses.dataclass(frozen=True)
class _Known:
    """What a directory says of a sample that is done. `digest` is empty in records of older versions."""

    question: str
    digest: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "_Known":
        return cls(record["question"], record.get("sample_sha256", ""))

    def check(self, sample: Sample, directory: Path) -> None:
        """Raises DataError if this is not the sample."""
        if sample.question != self.question:
            what = "another question"
        elif self.digest and sample_digest(sample) != self.digest:
            what = "a question with other options, images, boxes or gold answers"
        else:
            return
        raise DataError(f"{directory}: holds {what} under the id {sample.sample_id!r}; use another directory or id")


def sample_digest(sample: Sample) -> str:
    """Returns a SHA-256 of what a sample's answer and its scores depend on: all but its metadata and demonstration."""
    images = [file_digest(image) if isinstance(image, str) else pixels_sha256(image) for image in sample.images]
    boxes = [dataclasses.astuple(box) for box in sample.boxes]
    values = [sample.question, sample.options, sample.answer, sample.answers, boxes, images]
    values += [[one.to_json() for one in sample.objects]] if sample.objects else []
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _waiting(samples: Iterable[Sample], done: Mapping[str, _Known], directory: Path) -> Iterator[Sample]:
    """Yields the samples that are not done."""
    seen: set[str] = set()
    for sample in samples:
        if sample.sample_id in seen:
            raise DataError(f"sample {sample.sample_id!r}: occurs twice; every sample of a data set needs an id of its own")
        seen.add(sample.sample_id)
        if known := done.get(sample.sample_id):
            known.check(sample, directory)
        else:
            yield sample


def _stamp(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, or checks that the directory has the same."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is damaged ({error!r}); use another directory") from error
        old = before if isinstance(before, dict) else {}
        keys = [key for key in sorted(old.keys() | settings) if key in old or key not in _NEWER]
        if changed := ", ".join(key for key in keys if old.get(key) != settings.get(key)):
            raise ConfigError(f"{path.parent}: holds trajectories of other settings ({changed}); use another directory")
    elif is_main():
        with atomic_replace(path) as partial:
            partial.write_text(json.dumps(settings, indent=2) + "\n")
