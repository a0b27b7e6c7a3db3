"""Invalid records of a file: one run reports all of them, and `--skip_bad` leaves them out."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from vitar_jax.errors import DataError

HELP = "leave out invalid records (default: stop after listing them)"
ALWAYS = "has no effect: invalid records of this set are always left out, after listing them"


class BadRecords(DataError):
    """Several records of a file are invalid. `errors` has one error per record, in the order of the file."""

    def __init__(self, summary: str, errors: Sequence[DataError]):
        super().__init__("\n".join([*map(str, errors), summary]))
        self.summary, self.errors = summary, errors


def refuse(where: object, bad: Sequence[DataError], count: int, *, skip_bad: bool) -> None:
    """Raises BadRecords if some of `count` records are invalid, unless they are to be left out."""
    if bad and not skip_bad:
        summary = f"{len(bad)} of {count} records are invalid; mend them, or leave them out with --skip_bad"
        raise BadRecords(f"{where}: {summary}", bad)


@contextlib.contextmanager
def listing(bad: Sequence[DataError]) -> Iterator[None]:
    """Prints the errors in `bad` on standard error when the block ends. BadRecords then is an error of one line."""
    try:
        yield
    except BadRecords as error:
        raise DataError(error.summary) from error
    finally:
        print(*bad, sep="\n", end="\n" * bool(bad), file=sys.stderr)
