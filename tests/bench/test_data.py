"""Input beside a device that sleeps: what is counted, which steps are slept for, and the command. No time is judged."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit import micro
from tests.kit.errors import Main
from tests.kit.recipes import load_config
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench import data
from vitar_jax.bench.data import Host, Measured
from vitar_jax.data.pipeline import Share
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.parallel.topology import CHIPS, find_topology


def vqa_rad_recipe() -> Recipe:
    config = load_config("vqa_rad_7b")
    config.data.update(source="images", processor="tokenizer")
    return Recipe.from_config(config)


def test_a_host_takes_its_part_of_the_planned_step() -> None:
    """A slice of 64 chips in 16 hosts; its step, at the peak, is what the plan says of its operations."""
    recipe = vqa_rad_recipe()
    stage = data.supervised_stage(recipe)
    host = data.host_of(recipe, stage, find_topology("v5e:8x8"), 0.5)
    assert host.share == Share(0, 16)
    assert host.shape.bins * host.shape.rows * 16 == stage.batch_size == 128
    tokens = stage.batch_size * host.shape.tokens
    # Six operations a weight and token, of 7.6 billion weights without a table of embeddings; vision and attention on top.
    seconds = 6 * 7.07e9 * tokens / (64 * CHIPS["v5e"].flops * 0.5)
    assert 1.0 < host.step_seconds / seconds < 1.5
    assert data.host_of(recipe, stage, find_topology("v5e:8x8"), 0.25).step_seconds == pytest.approx(2 * host.step_seconds)


def test_what_cannot_be_planned_is_said() -> None:
    recipe = vqa_rad_recipe()
    with pytest.raises(ConfigError, match="--topology=cpu: its peak FLOP/s is unknown"):
        data.host_of(recipe, data.supervised_stage(recipe), find_topology("cpu"), 0.5)
    config = load_config("vitar_grpo_7b")
    config.data.update(sets="sets", processor="tokenizer")
    with pytest.raises(ConfigError, match="no supervised stage"):
        data.supervised_stage(Recipe.from_config(config))


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are slept for, in which nothing is slept."""
    slept: list[float] = []
    monkeypatch.setattr(data.time, "sleep", slept.append)
    return slept


@pytest.mark.slow
@pytest.mark.parametrize("step, steps_slept", [(1e6, [0.0, 1e6]), (1e-9, [0.0, 1e-9, None])])
def test_counts_and_steps(step: float, steps_slept: list[float | None], naps: list[float], tmp_path: Path) -> None:
    """A machine that is slower than the step is timed at one that it can keep up with, too."""
    recipe = Recipe.from_config(micro.get_config())
    stage, processor = recipe.stages["sft"], build.processor(recipe, tmp_path)
    shape = build.batch_shape(recipe, stage, bins=2, shards=2)
    said: list[str] = []
    host = Host(Share(), shape, step)
    rows = data.measure(recipe, stage, processor, host, threads=[0, 1], steps=2, say=said.append)
    assert [row.threads for row in rows] == [0] * len(steps_slept) + [1] * len(steps_slept) and len(said) == len(rows)
    for row, expected in zip(rows, 2 * steps_slept, strict=True):
        assert expected is None or row.step_seconds == expected
        assert row.examples == 2 * stage.batch_size and row.examples * 82 <= row.tokens <= row.examples * 84
        assert row.bytes == 2 * 2 * _bytes(shape, processor) and len(row.wait) == 2
        assert 0 < sum(row.wait) <= row.seconds
    assert naps == [row.step_seconds for row in rows for _ in range(4)]  # two before the clock starts


def _bytes(shape: Any, processor: Any) -> int:
    """Of a bin: six numbers and a flag a token, and of its images pixels and two coordinates a patch."""
    slots = shape.images * shape.size_class.slots
    return shape.rows * shape.tokens * (6 * 4 + 1) + slots * 4 * (processor.patch_width + 2)


def test_the_table_says_whether_a_step_waits() -> None:
    kept_up = Measured(2, 3.0, (0.01, 0.05), 6.06, 1.2, 40, 1000, 10**9)
    late = dataclasses.replace(kept_up, wait=(1.0, 1.0), seconds=8.0)
    free = dataclasses.replace(kept_up, step_seconds=0.0, wait=(1.0, 1.0), seconds=2.0)
    lines = data.table([free, kept_up, late]).splitlines()
    assert lines[1].endswith("100.00%") and "20.0" in lines[1] and "no step" in lines[1]
    assert lines[2].split()[-2:] == ["0.99%", "met"] and lines[3].split()[-2:] == ["25.00%", "MISSED"]
    # 20 examples a step of 3 s, each 0.03 s of a core: a fifth of one.
    assert "20.0 examples" in data.needs([free, late], Host(Share(), Any, 3.0), 2)  # type: ignore[arg-type]
    assert "0.20 cores" in data.needs([free, late], Host(Share(), Any, 3.0), 2)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command(main: Main, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On real images and the real tokenizer, at a step that is over at once."""
    output = tmp_path / "data.json"
    folders = [
        "--config=configs/vqa_rad_7b.py",
        f"--config.data.source={test_data / 'vqa_rad'}",
        f"--config.data.processor={test_data / 'qwen2_5_vl_7b_instruct'}",
    ]
    small = ["--topology=v5e:16x16", "--mfu=1", "--steps=1", "--workers=2", f"--output={output}"]
    assert main(command_line, "data", *folders, *small, commands=command_line.COMMANDS) == 0
    shown = capsys.readouterr().out
    assert "one of 64 hosts of v5e:16x16" in shown and "waiting for input" in shown
    rows = json.loads(output.read_text())["rows"]
    assert rows[0]["step_seconds"] == 0 and rows[1]["examples"] > 2 and math.isfinite(rows[1]["waiting"])
    assert np.all([row["threads"] == 2 for row in rows])
