"""Progress on stderr: a bar in a terminal, and elsewhere, such as in a log file, a line every half minute."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from vitar_jax.runtime.distributed import is_main

LINE_SECONDS = 30.0


class _Lines(tqdm):
    """Progress as lines. The first one is printed after `LINE_SECONDS`, the last one at the end."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings, mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, leave=False)
        left = ", {remaining} left" if self.total is not None else ""
        self.bar_format = "{desc}: {n_fmt} of {total_fmt} {unit}s, {elapsed} passed" + left + "{postfix}"

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Prints a line, unless it would repeat the last one. tqdm calls this at each refresh and at the end."""
        if self.n != self.last_print_n:
            print(self, file=self.fp, flush=True)
        return False  # nothing has to be cleared

    def clear(self, *_: Any, **__: Any) -> None:
        """Does nothing, since a line stays."""


def progress_bar(
    title: str, *, unit: str, samples: Iterable[Any] | None = None, total: int | None = None, initial: int = 0
) -> tqdm:
    """Returns a bar that starts at `initial` of `total` units. Only the main process shows it.

    Args:
      samples: If given, iterating over the bar yields these and advances the bar.
    """
    settings: dict[str, Any] = dict(iterable=samples, desc=title, unit=unit, total=total, initial=initial)
    if sys.stderr.isatty():
        return tqdm(**settings, disable=not is_main(), dynamic_ncols=True, mininterval=0.5)
    return _Lines(**settings, disable=not is_main())
