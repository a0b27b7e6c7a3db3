"""How every command ends on an error that the user can fix: one line on standard error and exit code 2."""

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
    """Ends the command in one line if its code raises VitarError. Also a decorator, for the `main` of a command."""
    try:
        yield
    except VitarError as error:
        fail(error)
