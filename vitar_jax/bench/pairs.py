"""Paired timing: ours and the peer's work in turns, their speeds as ratios, and the one table of all of them."""

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
Work = Callable[[], Any]  # does the work and returns when all of it is done

_CALL_SECONDS = 0.2  # a timed turn repeats its work for about so long, so that clock and caches hardly matter
_REST_SECONDS = 0.02  # between turns: the other side's threads stop spinning


@dataclasses.dataclass(frozen=True)
class Pair:
    """One piece of work, done by both sides.

    Attributes:
      name, size: what is done, and on what.
      target: least speed of ours as a multiple of the peer's; None where none is set.
      flops: operations that the work's mathematics asks for, 0 where that says nothing.
      items: things done by one call (images), 0 where one call is the unit.
      peer_settings: what the peer was found to be fastest with.
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
    """A pair and its seconds a call, one entry a round."""

    pair: Pair
    ours_seconds: tuple[float, ...]
    peer_seconds: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Speed of ours as a multiple of the peer's, round by round; above 1 we are faster."""
        return [peer / ours for ours, peer in zip(self.ours_seconds, self.peer_seconds, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        return None if self.pair.target is None else self.ratio >= self.pair.target


class Disagreement(Exception):
    """The two sides do not compute the same: a bug, and no time of it would mean anything."""


def check_agreement(name: str, ours: Any, peer: Any, tolerance: float = 1e-3) -> float:
    """Relative distance ||ours - peer|| / ||peer|| of two arrays.

    Raises:
      Disagreement: it is above the tolerance, or not a number.
    """
    ours, peer = (np.asarray(side, np.float64) for side in (ours, peer))
    if ours.shape != peer.shape:
        raise Disagreement(f"{name}: shape {ours.shape} on our side, {peer.shape} on the peer's")
    error = float(np.linalg.norm(ours - peer) / np.linalg.norm(peer))
    if not error <= tolerance:
        raise Disagreement(f"{name}: outputs differ by {error:.2e} of their size, at most {tolerance:g} is allowed")
    return error


def seconds(work: Work, repeats: int = 1) -> float:
    """Seconds a call. Python's garbage is collected before and not meanwhile, as `timeit` has it."""
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
    """Times both sides in turns; who goes first alternates. Both are warmed up before."""
    repeats = {}
    for name, work in (("ours", pair.ours), ("peer", pair.peer)):
        work()
        repeats[name] = math.ceil(_CALL_SECONDS / max(seconds(work), 1e-6))
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    sides = [("ours", pair.ours), ("peer", pair.peer)]
    for round_ in range(rounds):
        for name, work in sides if round_ % 2 == 0 else sides[::-1]:
            time.sleep(_REST_SECONDS)
            times[name].append(seconds(work, repeats[name]))
    return Row(pair, tuple(times["ours"]), tuple(times["peer"]))


def fastest(settings: Sequence[S], prepare: Callable[[S], Work]) -> tuple[S, str]:
    """The setting whose work is done soonest, and a note with the time of each; one that fails is noted and passed over."""
    found: dict[S, float] = {}
    notes = []
    for setting in settings:
        try:
            work = prepare(setting)
            work()
            work()  # compilers may take two calls
            found[setting] = min(seconds(work) for _ in range(3))
            notes.append(f"{setting} {duration(found[setting])}")
        except Exception as error:  # a compiler's failures have no common type
            notes.append(f"{setting} failed ({type(error).__name__})")
    if not found:
        raise RuntimeError("the peer runs in no way that was tried: " + ", ".join(notes))
    return min(found, key=found.__getitem__), ", ".join(notes)


def table(rows: Sequence[Row], matrix_rate: float = 0.0) -> str:
    """All rows as text.

    Args:
      matrix_rate: FLOPs a second of a matrix product measured in this run; shows each side's share of it.
    """
    header = ["work", "size", "ours", "torch", "speed of ours (range)", "target", "peer's settings"]
    if matrix_rate:
        header[4:4] = ["ours MFU", "torch MFU"]
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
    """Lines of cells as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def write_json(path: str | Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Writes `facts` about the run and every row with all its times."""
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
