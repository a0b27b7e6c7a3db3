"""Ends a command on an error that the user can fix: prints one line on standard error and exits with code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from vitar_jax.errors import VitarError


def fail(error: object) -> NoReturn:
    """Prints `error` as one line and exits with code 2."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the command with one line if its code raises VitarError. Also works as a decorator of a command's `main`."""
    try:
        yield
    except VitarError as error:
        fail(error)
