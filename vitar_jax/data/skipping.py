"""Skips records that cannot be used: counts them by kind, names each once in the log, and ends a run that skips too many."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from absl import logging

from vitar_jax.errors import DataError, ImageError, TooLongError, VitarError
from vitar_jax.runtime.distributed import gather_json

T = TypeVar("T")
MAX_SHARE = 0.5  # default of a stage's `max_skipped_share`
_WINDOW = 100  # number of consecutive records that the share is of
_ERRORS: Mapping[str, type[VitarError]] = {"image": ImageError, "too_long": TooLongError, "data": DataError}
KINDS = tuple(_ERRORS)


@dataclass(frozen=True)
class Skipped:
    """A skipped record: one of `KINDS`, and the message of its error, which names the record."""

    kind: str
    message: str

    def error(self, where: str = "") -> VitarError:
        """Returns the record's error, with `where` before its message."""
        return _ERRORS[self.kind](f"{where}: {self.message}" if where else self.message)


def attempt(make: Callable[[], T]) -> T | Skipped:
    """Returns the result of `make`, or a `Skipped` if it raises an error of the record.

    All other errors, also those of the config, are raised.
    """
    try:
        return make()
    except (ImageError, DataError) as error:
        return Skipped(next(kind for kind, cls in _ERRORS.items() if isinstance(error, cls)), str(error))


class Skips:
    """The records that a stage has skipped so far, in this process.

    Args:
      max_share: Maximum share of skipped records among 100 consecutive ones. 100 skipped in a row are always an error.
    """

    def __init__(self, max_share: float = MAX_SHARE):
        self._max_share = max_share
        self._counts = dict.fromkeys(KINDS, 0)
        self._window = self._window_skipped = 0  # records of the window so far
        self._named: set[str] = set()

    def accept(self, record: T | Skipped) -> T | None:
        """Returns a record that was read, or None after counting and naming a skipped one.

        Raises:
          DataError: If more than the maximum share of the records are skipped.
        """
        if self._window == _WINDOW:
            self._window = self._window_skipped = 0
        self._window += 1
        if not isinstance(record, Skipped):
            return record
        self._name(record)
        self._counts[record.kind] += 1
        self._window_skipped += 1
        if self._window_skipped > self._max_share * _WINDOW or self._window_skipped == _WINDOW:
            raise DataError(
                f"{self._window_skipped} of {self._window} consecutive records were skipped, more than "
                f"max_skipped_share={self._max_share:g} of {_WINDOW}; the last: {record.message}"
            )
        return None

    def separate(self, records: Iterable[T | Skipped]) -> tuple[list[T], dict[str, float]]:
        """Separates the records of a probe from the skipped ones, which it names but does not replace.

        Returns:
          The records of this process, and the numbers of samples played and skipped, over all processes and by kind.

        Raises:
          DataError: In every process, if more than the maximum share of all processes' records, or all, are skipped.
        """
        records = list(records)
        skipped = [record for record in records if isinstance(record, Skipped)]
        for record in skipped:
            self._name(record)
        own = Counter({"all": len(records)}) + Counter(record.kind for record in skipped)
        total = sum(map(Counter, gather_json(own)), Counter())
        by_kind = {f"skipped/{kind}": float(total[kind]) for kind in KINDS}
        count = sum(by_kind.values())
        if count and (count > self._max_share * total["all"] or count == total["all"]):
            last = f"; the last of this process: {skipped[-1].message}" if skipped else ""
            raise DataError(
                f"{count:.0f} of {total['all']} samples of the probe were skipped, more than "
                f"max_skipped_share={self._max_share:g} allows{last}"
            )
        kept = [record for record in records if not isinstance(record, Skipped)]
        return kept, {"samples": total["all"] - count, "skipped": count, **by_kind}

    def _name(self, record: Skipped) -> None:
        """Names a record in the log, unless it was named before."""
        if record.message not in self._named:
            self._named.add(record.message)
            logging.warning("skipped a record (%s): %s", record.kind, record.message)

    def get_state(self) -> dict[str, int]:
        """Returns the number of skipped records, in total and by kind, and the place in the window."""
        counts = {f"skipped_{kind}": count for kind, count in self._counts.items()}
        place = {"window": self._window, "window_skipped": self._window_skipped}
        return {"skipped": sum(counts.values()), **counts, **place}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues from a state. States of older checkpoints have at most the total, of records that were too long."""
        older = {"skipped_too_long": state.get("skipped", 0)}
        self._counts = {kind: state.get(f"skipped_{kind}", older.get(f"skipped_{kind}", 0)) for kind in KINDS}
        self._window, self._window_skipped = state.get("window", 0), state.get("window_skipped", 0)


def skipped_scalars(state: Mapping[str, int]) -> dict[str, float]:
    """Returns `data/skipped` and its parts by kind, from a state of `Skips`."""
    return {"data/skipped": state["skipped"], **{f"data/skipped/{kind}": state[f"skipped_{kind}"] for kind in KINDS}}
