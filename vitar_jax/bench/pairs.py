"""Paired timing: runs the same work on our side and on the peer's alternately, and tabulates the ratios of their speeds."""

import dataclasses
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vitar_jax.runtime.cli import duration

S = TypeVar("S", bound=Hashable)
Work = Callable[[], Any]  # blocks until the work is finished

_CALL_SECONDS = 0.2  # a timing repeats the work for about this long, so clock resolution and cold caches hardly matter
_REST_SECONDS = 0.02  # pause between timings, in which the other side's threads stop spinning


@dataclasses.dataclass(frozen=True)
class Pair:
    """One piece of work, done by both sides.

    Attributes:
      name: Name of the work.
      size: Size of the work, such as the size of a model.
      ours, peer: The work of each side.
      target: Minimum speed of ours relative to the peer's. None means no target.
      flops: FLOPs that the work needs mathematically. 0 means not applicable.
      items: Number of items (such as images) per call. 0 means that the call itself is the unit.
      peer_settings: The peer's fastest settings.
    """

    name: str
    size: str
    ours: Work
    peer: Work
    target: float | None = None
    flops: int = 0
    items: int = 0
    peer_settings: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair and its seconds per call, one entry per round of timing."""

    pair: Pair
    ours_seconds: tuple[float, ...]
    peer_seconds: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Speed of ours relative to the peer's, for each round. Above 1, ours is faster."""
        return [peer / ours for ours, peer in zip(self.ours_seconds, self.peer_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        return None if self.pair.target is None else self.ratio >= self.pair.target


class Disagreement(Exception):
    """The two sides compute different results, so comparing their times is meaningless."""


def check_agreement(name: str, ours: Any, peer: Any, tolerance: float = 1e-3) -> float:
    """Returns the relative distance ||ours - peer|| / ||peer|| of two arrays.

    Raises:
      Disagreement: If the distance exceeds the tolerance or is NaN, or if shapes differ.
    """
    ours, peer = (np.asarray(side, np.float64) for side in (ours, peer))
    if ours.shape != peer.shape:
        raise Disagreement(f"{name}: got shape {ours.shape}, expected the peer's, {peer.shape}")
    error = float(np.linalg.norm(ours - peer) / np.linalg.norm(peer))
    if not error <= tolerance:
        raise Disagreement(f"{name}: got outputs with a relative difference of {error:.2e}, expected at most {tolerance:g}")
    return error


def seconds(work: Work, repeats: int = 1) -> float:
    """Returns the seconds per call. Like `timeit`, disables garbage collection, after collecting once."""
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - began) / repeats
    finally:
        gc.enable()


def run_pair(pair: Pair, rounds: int) -> Row:
    """Warms up both sides, then times them alternately. The side that runs first also alternates."""
    sides = [("ours", pair.ours), ("peer", pair.peer)]
    repeats = {name: _repeats(work) for name, work in sides}
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for round_ in range(rounds):
        for name, work in sides if round_ % 2 == 0 else sides[::-1]:
            time.sleep(_REST_SECONDS)
            times[name].append(seconds(work, repeats[name]))
    return Row(pair, tuple(times["ours"]), tuple(times["peer"]))


def run_alone(work: Work, rounds: int) -> float:
    """Warms up work without a peer, and returns the median of its seconds per call over `rounds` timings."""
    repeats = _repeats(work)
    return statistics.median(seconds(work, repeats) for _ in range(rounds))


def _repeats(work: Work) -> int:
    """Warms up work, and returns the number of calls of one timing."""
    work()
    return math.ceil(_CALL_SECONDS / max(seconds(work), 1e-6))


def fastest(settings: Sequence[S], prepare: Callable[[S], Work]) -> tuple[S, str]:
    """Returns the fastest setting, and a note with the time of each setting. Notes and skips settings that fail.

    Args:
      prepare: Returns the work under a setting.

    Raises:
      RuntimeError: If every setting fails.
    """
    found: dict[S, float] = {}
    notes = []
    for setting in settings:
        try:
            work = prepare(setting)
            work()
            work()  # a compiler may need two calls
            found[setting] = min(seconds(work) for _ in range(3))
            notes.append(f"{setting} {duration(found[setting])}")
        except Exception as error:  # compiler failures have no common type
            notes.append(f"{setting} failed ({type(error).__name__})")
    if not found:
        raise RuntimeError("the peer fails under every setting: " + ", ".join(notes))
    return min(found, key=found.__getitem__), ", ".join(notes)


def table(rows: Sequence[Row], matrix_rate: float = 0.0) -> str:
    """Formats all rows as a table.

    Args:
      matrix_rate: FLOP/s of a matrix product measured in this run. If above 0, adds the MFU of each side, relative to it.
    """
    header = ["work", "size", "ours", "peer", "our speed (range)", "target", "peer settings"]
    if matrix_rate:
        header[4:4] = ["ours MFU", "peer MFU"]
    lines = [header]
    for row in rows:
        pair = row.pair
        sides = [statistics.median(row.ours_seconds), statistics.median(row.peer_seconds)]
        line = [pair.name, pair.size]
        line += [f"{pair.items / side:.1f}/s" if pair.items else duration(side) for side in sides]
        if matrix_rate:
            line += [f"{pair.flops / side / matrix_rate:.0%}" if pair.flops else "" for side in sides]
        line.append(f"{row.ratio:.2f}x ({min(row.ratios):.2f} to {max(row.ratios):.2f})")
        line.append("" if pair.target is None else f"{pair.target:g}x {'met' if row.met else 'MISSED'}")
        line.append(pair.peer_settings)
        lines.append(line)
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Formats lines of cells as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_json(path: str | Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Writes `facts` about the run and all rows, with every timing, as JSON."""
    listed = [
        {
            "work": row.pair.name,
            "size": row.pair.size,
            "ours_seconds": row.ours_seconds,
            "peer_seconds": row.peer_seconds,
            "ratio": row.ratio,
            "ratios": row.ratios,
            "target": row.pair.target,
            "met": row.met,
            "flops": row.pair.flops,
            "items": row.pair.items,
            "peer_settings": row.pair.peer_settings,
        }
        for row in rows
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(facts | {"rows": listed}, indent=2) + "\n")
