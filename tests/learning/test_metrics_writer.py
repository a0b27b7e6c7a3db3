"""The file of metrics: what a restart keeps of it."""

import json
from pathlib import Path

import pytest

from vitar_jax.errors import DataError
from vitar_jax.learning.metrics_writer import MetricsWriter


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    writer = MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"actor/loss": step / 7})
    writer.close()
    return tmp_path


def test_steps_that_are_made_again_are_written_once(directory: Path) -> None:
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "actor')  # a kill cut it short
    writer = MetricsWriter(directory, 2)
    assert writer.before == [{"step": 1, "actor/loss": 1 / 7}, {"step": 2, "actor/loss": 2 / 7}]
    writer.write(3, {"actor/loss": 5.0})
    writer.close()
    assert [row["step"] for row in lines(directory)] == [1, 2, 3] and lines(directory)[2]["actor/loss"] == 5


def test_a_damaged_line_is_named(directory: Path) -> None:
    path = directory / "metrics.jsonl"
    path.write_text('{"step": 1}\n[1]\n' + path.read_text())
    with pytest.raises(DataError, match="metrics.jsonl:2: is damaged"):
        MetricsWriter(directory, 9)
