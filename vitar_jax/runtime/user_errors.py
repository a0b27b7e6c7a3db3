"""Ends a command on an error that the user can fix: prints one line on standard error and exits with code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vitar_jax.errors import VitarError

LONGEST_PATH = 500  # characters of a path that are shown; longer ones are often no paths, but pictures as text


def fail(error: object) -> NoReturn:
    """Prints `error` as one line and exits with code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def one_line_errors(*, paths: bool = False) -> Iterator[None]:
    """Ends the command with one line if its code raises VitarError. Also works as a decorator of a command's `main`.

    Args:
      paths: Whether an OSError about a path also counts, for commands that read and write files where their flags say.
    """
    try:
        yield
    except VitarError as error:
        fail(error)
    except OSError as error:
        if not paths or error.filename is None:
            raise
        fail(f"{str(error.filename)[:LONGEST_PATH]}: {error.strerror}")
