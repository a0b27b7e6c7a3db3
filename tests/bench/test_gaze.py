"""The bench of searches measures what it names, and its figures are read back."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kit.errors import Main
from tests.kit.processes import ROOT
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench.expert_steps import GROWTH, growth

SEARCHER = "data_prep.gaze.annotated:annotated_searches"


@pytest.mark.slow
def test_it_opens_traces_and_searches_images(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--count=40", f"--searcher={SEARCHER}", f"--output={tmp_path / 'gaze.json'}"]
    assert main(command_line, "gaze", *given, commands=command_line.COMMANDS) == 0
    found = json.loads((tmp_path / "gaze.json").read_text())
    assert found["questions"] == 40 and found["searches_per_question"] == 6
    assert found["searches_per_second"] > 1 and 10 < found["megabytes"] <= found["megabytes_after_reading"]
    shown = capsys.readouterr().out
    assert "traces of 40 questions open in" in shown and "searches per second on one core" in shown


def test_a_folder_without_images_is_an_error(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--count=1", f"--searcher={SEARCHER}", f"--images={tmp_path}"]
    assert main(command_line, "gaze", *given, commands=command_line.COMMANDS) == 2
    assert f"--images: {tmp_path} holds no images" in capsys.readouterr().err


@pytest.mark.slow
def test_it_times_steps_beside_an_expert(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--count=10", "--steps=2", f"--config={ROOT}/tests/kit/searches.py", f"--output={tmp_path / 'gaze.json'}"]
    assert main(command_line, "gaze", *given, commands=command_line.COMMANDS) == 0
    found = json.loads((tmp_path / "gaze.json").read_text())
    assert found["ratio"] == pytest.approx(found["step_seconds"] / found["own_step_seconds"])
    assert found["expert_episodes_per_second"] > 1 and 0 <= found["waiting"] < 1
    shown = capsys.readouterr().out
    assert "stage grpo:" in shown
    if sys.platform == "linux":
        assert 0.1 < found["memory_gib"] and f"{found['memory_gib']:.2f} GiB after 2 steps, " in shown


def test_memory_grows_if_each_step_keeps_something() -> None:
    """What fills in the first quarter does not count, nor do fluctuations of 1 %."""
    step = np.arange(1000)
    flat = 1 + 0.5 * (1 - np.exp(-step / 30)) + np.random.default_rng(0).uniform(-0.01, 0.01, 1000)
    assert abs(growth(flat.tolist())) < 0.01 < GROWTH
    assert growth((flat + 1e-4 * step).tolist()) == pytest.approx(0.1 * 0.65 / 1.53, rel=0.1) and GROWTH < 0.03
    assert growth([1.0, 3.0]) == 2.0 and growth([1.0]) == 0.0


def test_a_recipe_without_experts_is_an_error(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--count=1", f"--config={ROOT}/tests/kit/micro.py"]
    assert main(command_line, "gaze", *given, commands=command_line.COMMANDS) == 2
    assert "--config: no stage of the schedule has experts with traces" in capsys.readouterr().err
