"""Progress is a bar in a terminal and lines elsewhere."""

import sys
from typing import Any

import pytest

from vitar_jax.runtime import progress


def test_a_log_gets_lines(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.progress_bar("sft", unit="step", total=6, initial=2) as bar:
        bar.set_postfix({"loss": "1.500"}, refresh=False)
        bar.update(3)
        bar.clear()
        bar.update(1)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("sft: 5 of 6 steps, 00:00 passed, 00:00 left, loss=1.500") and last.startswith("sft: 6 of 6 steps")


def test_a_short_stage_gets_its_last_line(capsys: Any) -> None:
    with progress.progress_bar("sft", unit="step", total=3) as bar:
        for _ in range(3):
            bar.update()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sft: 3 of 3 steps")
    with progress.progress_bar("played before", unit="episode", total=3, initial=3):
        pass
    assert list(progress.progress_bar("attention", unit="episode", samples=iter("ab"))) == ["a", "b"]
    assert capsys.readouterr().err == "attention: 2 of ? episodes, 00:00 passed\n"


def test_a_terminal_gets_a_bar(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress_bar("sft", unit="step", total=2) as bar:
        bar.update(2)
    shown = capsys.readouterr().err
    assert "\rsft: 100%" in shown and "2/2" in shown


def test_other_processes_show_nothing(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "is_main", lambda: False)
    with progress.progress_bar("sft", unit="step", total=2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == "" and bar.n == 0
