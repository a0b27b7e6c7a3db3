"""Runs parts of a benchmark in a given time. Parts fail apart, and those that do not fit are left out from the end."""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Check:
    """A result beside the right one.

    Attributes:
      error: Relative difference ||result - right|| / ||right||.
      limit: Largest allowed error.
      note: What else the check found.
    """

    name: str
    error: float
    limit: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # False for NaN


@dataclasses.dataclass(frozen=True)
class Rates:
    """What one device reaches: FLOP/s of a matrix product, and bytes/s of a copy, which reads and writes."""

    flops: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Speed:
    """The time of one piece of work, and what it needs on each device.

    Attributes:
      size: Name of the model.
      flops: FLOPs that the sizes imply. 0 means not counted.
      moved: Bytes of weights and cache that the work must read. 0 means not counted.
      passed: Bytes that `vitar_jax.plan` counts for the program. 0 means that the work is no program of its own.
      phases: Seconds of the parts of the work.
    """

    name: str
    size: str
    seconds: float
    flops: float = 0.0
    moved: float = 0.0
    passed: float = 0.0
    phases: dict[str, float] = dataclasses.field(default_factory=dict)


Row = Check | Rates | Speed


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
      minutes: Expected time, compilation included.
      run: Returns the rows.
    """

    name: str
    minutes: float
    run: Callable[[], Sequence[Row]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
      minutes: Expected time.
      seconds: Time that it took. None if it was left out.
      error: Why it failed, in one line. Empty if it did not.
    """

    name: str
    minutes: float
    seconds: float | None = None
    error: str = ""
    rows: tuple[Row, ...] = ()

    @property
    def state(self) -> str:
        return "left out" if self.seconds is None else "failed" if self.error else "done"


def run_parts(
    parts: Sequence[Part],
    minutes: float,
    say: Callable[[str], None],
    each: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Runs parts in order. The first part whose expected time exceeds the time left is left out, with all parts after it.

    A part that raises, or that has a check above its limit, has failed. The next parts run nevertheless.

    Args:
      each: Called with all outcomes so far after each part, so that an interrupted run keeps them.
    """
    began, outcomes = clock(), []
    for number, part in enumerate(parts):
        left = minutes - (clock() - began) / 60
        if part.minutes > left:
            outcomes += [Outcome(one.name, one.minutes) for one in parts[number:]]
            say(f"left out, with {left:.1f} min left: {', '.join(f'{o.name} ({o.minutes:g} min)' for o in outcomes[number:])}")
            break
        say(f"{part.name}: about {part.minutes:g} min")
        outcomes.append(_run(part, clock))
        if outcomes[-1].error:
            say(f"{part.name}: FAILED: {outcomes[-1].error}")
        each(outcomes)
    each(outcomes)
    return outcomes


def _run(part: Part, clock: Callable[[], float]) -> Outcome:
    began, rows, error = clock(), (), ""
    try:
        rows = tuple(part.run())
        if wrong := [row for row in rows if isinstance(row, Check) and not row.passed]:
            error = f"{len(wrong)} of {len(rows)} checks exceed their limit, first {wrong[0].name}: {wrong[0].error:.1e}"
    except Exception as raised:  # compilers and drivers raise anything
        error = one_line(raised)
    gc.collect()  # frees the device memory of a part that raised
    return Outcome(part.name, part.minutes, clock() - began, error, rows)


def one_line(error: Exception) -> str:
    """Returns an exception's type and the first line of its message, of at most 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
