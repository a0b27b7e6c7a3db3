"""Paired timing: what is timed, in which order, and what the table says of it."""

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitar_jax.bench import pairs
from vitar_jax.bench.pairs import Disagreement, Pair, Row, check_agreement, fastest, run_pair, seconds, table, write_json


def row(target: float | None, ours: tuple[float, ...] = (0.1, 0.2, 0.1), peer: tuple[float, ...] = (0.1, 0.1, 0.3)) -> Row:
    return Row(Pair("prefill", "10m", list, list, target, flops=10**9, peer_settings="sdpa"), ours, peer)


def test_a_ratio_is_the_median_of_its_rounds() -> None:
    assert row(None).ratios == pytest.approx([1, 0.5, 3]) and row(None).ratio == pytest.approx(1)
    assert row(0.9).met and not row(1.1).met and row(None).met is None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only work and rest move."""
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(pairs.gc, "collect", lambda: 0)  # slow, because the modules of all tests are loaded
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: now)
    monkeypatch.setattr(pairs.time, "sleep", spend)
    return spend


def test_sides_take_turns(clock: Callable[[float], None]) -> None:
    calls: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            clock(seconds)

        return run

    timed = run_pair(Pair("w", "s", work("o", 0.15), work("p", 0.3)), rounds=4)
    assert timed.ours_seconds == pytest.approx([0.15] * 4) and timed.peer_seconds == pytest.approx([0.3] * 4)
    assert timed.ratio == pytest.approx(2)
    # Two calls to warm up; then turns of 0.2 seconds or more, and the one who was second goes first.
    assert "".join(calls) == "oopp" + "oop" + "poo" + "oop" + "poo"


def test_the_fastest_setting_is_taken(clock: Callable[[float], None]) -> None:
    def prepare(setting: str) -> Callable[[], None]:
        if setting == "broken":
            raise RuntimeError
        return lambda: clock({"slow": 2.0, "quick": 0.001}[setting])

    best, note = fastest(["slow", "broken", "quick"], prepare)
    assert best == "quick" and note == "slow 2.00 s, broken failed (RuntimeError), quick 1.0 ms"
    with pytest.raises(RuntimeError, match="broken"):
        fastest(["broken"], prepare)


def test_sides_that_disagree_are_not_timed() -> None:
    ours = np.ones((3, 4))
    assert check_agreement("w", ours * (1 + 9e-4), ours) == pytest.approx(9e-4)
    for wrong in (ours * 1.002, ours * np.nan, np.ones((4, 3))):
        with pytest.raises(Disagreement, match="w"):
            check_agreement("w", wrong, ours)


def test_the_table_says_whether_a_target_is_met() -> None:
    lines = table([row(0.9), row(1.1), row(None)], matrix_rate=1e11).splitlines()
    assert "1.00x (0.50 to 3.00)" in lines[1] and "0.9x met" in lines[1] and "1.1x MISSED" in lines[2]
    assert "met" not in lines[3].lower() and lines[3].endswith("sdpa")
    assert "10%" in lines[1]  # 1e9 operations in 0.1 s, of 1e11 a second
    assert len({line.index("x (") for line in lines[1:]}) == 1


def test_json_holds_every_time(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "bench.json", [row(0.9)], {"threads": 2})
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert written["threads"] == 2
    (only,) = written["rows"]
    assert only["ours_seconds"] == [0.1, 0.2, 0.1] and only["met"] is True and math.isclose(only["ratio"], 1)


def test_garbage_is_not_collected_while_time_is_taken() -> None:
    seen: list[bool] = []
    seconds(lambda: seen.append(gc.isenabled()), repeats=2)
    assert seen == [False, False] and gc.isenabled()
