"""Files of trajectories: one JSON line each, with each image stored once under its content hash."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vitar_jax.episodes.trajectory import Trajectory, plain_value
from vitar_jax.errors import DataError
from vitar_jax.runtime.crash_safe import drop_tail, read_json_lines

T = TypeVar("T")
JSONL = "trajectories.jsonl"


class TrajectoryWriter:
    """A writer that appends trajectories to a file of `directory` and adds their images to `directory/images/`.

    Args:
      process: Index of this process; each process writes its own file.
      since: If given, removes lines of this and later policy versions, whose steps will run again.

    Raises:
      DataError: If a line is damaged, with `since`.
    """

    def __init__(self, directory: Path, process: int = 0, *, since: int | None = None):
        self._images = directory / "images"
        self._images.mkdir(parents=True, exist_ok=True)
        self._process = process
        self.path = directory / file_of(process, JSONL)
        drop_tail(self.path, lambda line: since is None or self._version(line) < since)

    def write(self, trajectories: Iterable[Trajectory]) -> None:
        """Appends trajectories. Writes images before lines, so a line never refers to an image that does not exist."""
        lines = []
        for trajectory in trajectories:
            for image in trajectory.images:
                path = self._images / f"{image.sha256}.png"
                if not path.exists():
                    partial = path.with_suffix(f".{self._process}.partial")
                    image.pixels.save(partial, format="PNG", compress_level=1)
                    partial.replace(path)
            lines.append(json.dumps(trajectory.to_json(), default=plain_value) + "\n")
        with self.path.open("a") as file:
            file.write("".join(lines))

    def _version(self, line: bytes) -> int:
        try:
            return int(json.loads(line)["policy_version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{self.path}: a line is damaged ({error!r})") from error


def file_of(process: int, name: str) -> str:
    """Returns the name of a process's file: answers.jsonl, answers-00001.jsonl, ..."""
    stem, suffix = name.split(".")
    return f"{stem}-{process:05d}.{suffix}" if process else name


def read_trajectories(directory: Path) -> Iterator[Trajectory]:
    """Yields the trajectories of a directory, of all processes. Ignores a truncated last line.

    Raises:
      DataError: If the directory has no file of trajectories, or a line is damaged. The message names the line.
    """
    return _read(directory, lambda record: Trajectory.from_json(record, directory / "images"))


def read_records(directory: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of `Trajectory.to_json`, read as in `read_trajectories` but without opening images."""
    plain = dataclasses.MISSING
    names = [f.name for f in dataclasses.fields(Trajectory) if f.default is plain and f.default_factory is plain]
    return _read(directory, lambda record: record | {name: record[name] for name in names})


def _read(directory: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    paths = sorted(directory.glob(JSONL.replace(".", "*.")))
    if not paths:
        raise DataError(f"{directory / JSONL}: no such file of trajectories")
    for path in paths:
        yield from read_json_lines(path, make)
