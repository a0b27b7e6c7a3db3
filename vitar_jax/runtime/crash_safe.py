"""Crash-safe files: append-only JSON Lines (a truncated last line is ignored) and atomic replacement of whole files."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from vitar_jax.errors import DataError

T = TypeVar("T")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      DataError: If the file does not hold a JSON object. The message names the file.
      OSError: If the file cannot be read.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error!r})") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: got a {type(values).__name__}, expected a JSON object")
    return values


def read_json_lines(path: Path, make: Callable[[Any], T], *, skip_partial: bool = True) -> Iterator[T]:
    """Yields `make(record)` for the JSON record of each line.

    Args:
      skip_partial: Whether to skip a last line that has no newline, because a crash truncated it. Set it to False for files
        that this package did not write; those may end without a newline.

    Raises:
      DataError: If a line is not valid JSON or `make` raises. The message names the file and the line.
      OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if skip_partial and not line.endswith(b"\n"):
                break
            try:
                made = make(json.loads(line))
            except Exception as error:  # a damaged record can break `make` in any way
                raise DataError(f"{path}:{number}: is damaged ({error!r})") from error
            yield made


def drop_tail(path: Path, keep: Callable[[bytes], bool] = bool) -> None:
    """Removes a truncated last line, so that the next append starts on a fresh line. Creates a missing file.

    Args:
      keep: Predicate of a line. The first line that fails it is removed, together with every line after it.
    """
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(sum(len(line) for line in takewhile(lambda line: line.endswith(b"\n") and keep(line), file)))


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` atomically on exit. After an exception, `path` is unchanged."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
