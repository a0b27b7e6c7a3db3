"""Files that outlive a kill: of JSON lines that only grow, the last perhaps cut short, and such as are there whole or not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from vitar_jax.errors import DataError

T = TypeVar("T")


def read_json_lines(path: Path, make: Callable[[Any], T], *, skip_partial: bool = True) -> Iterator[T]:
    """What `make` makes of each line's JSON.

    Args:
      skip_partial: a last line without its end was cut short by a kill, and is left out; a file of others may end so.

    Raises:
      DataError: a line is no JSON, or `make` cannot take it; file and line are named.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if skip_partial and not line.endswith(b"\n"):
                break
            try:
                made = make(json.loads(line))
            except Exception as error:  # what is damaged can break in any way
                raise DataError(f"{path}:{number}: is damaged ({error!r})") from error
            yield made


def drop_tail(path: Path, keep: Callable[[bytes], bool] = bool) -> None:
    """Takes away a last line that a kill cut short, so that the next one does not grow out of it; makes a missing file.

    Args:
      keep: the first line of which this is not true goes too, with all that follow.
    """
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(sum(len(line) for line in takewhile(lambda line: line.endswith(b"\n") and keep(line), file)))


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Gives a path to write to, whose file takes the place of `path` at the end; after an error all is as it was."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
