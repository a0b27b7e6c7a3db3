"""Damage to a record that a run or an evaluation left: one line that names the file, never a KeyError."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.trajectories import make_trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.errors import DataError, VitarError
from vitar_jax.evaluation.benchmarks import named_benchmark
from vitar_jax.evaluation.results import primary_rule, read_scores
from vitar_jax.learning.metrics_writer import MetricsWriter
from vitar_jax.rollout.offline import _stamp
from vitar_jax.runtime.crash_safe import read_json

LINES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "metrics": ("metrics.jsonl", lambda folder: MetricsWriter(folder, 3)),
    "episodes to continue": ("trajectories.jsonl", lambda folder: TrajectoryWriter(folder, since=10**6)),
    "episodes": ("trajectories.jsonl", lambda folder: list(read_trajectories(folder))),
}
OBJECTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scores": ("scores.json", read_scores),
    "scores compared": ("scores.json", primary_rule),
    "card": ("mine/1.0.0/card.json", lambda folder: named_benchmark("mine", str(folder))),
    "any": ("any.json", lambda folder: read_json(folder / "any.json")),
}
DAMAGED = [b"\0\0", b"[]", b"7", b'{"step": ', b"\xff\xfe{}", b"[" * 100_000]


@pytest.mark.parametrize("content", [*DAMAGED, b"{}", b'{"step": "3", "policy_version": "x"}', b'{"step": null}'])
@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    file, read = LINES[name]
    whole = json.dumps(make_trajectory().to_json() | {"step": 1}).encode()
    TrajectoryWriter(tmp_path).write([make_trajectory()])  # and its images
    (tmp_path / file).write_bytes(whole + b"\n" + content + b"\n" + whole + b"\n")
    with pytest.raises(DataError, match=rf"{file}\b.*is damaged") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", *DAMAGED])
def test_damaged_settings_of_answers_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(VitarError, match="settings.json: is damaged|holds trajectories of other settings"):
        _stamp(tmp_path / "settings.json", {"a": 1})


@pytest.mark.parametrize("content", [b"", *DAMAGED])
@pytest.mark.parametrize("name", OBJECTS)
def test_a_damaged_object_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    file, read = OBJECTS[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}: (is damaged|got a .*, expected a JSON object)") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
