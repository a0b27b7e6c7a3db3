"""Evaluations under a control: which samples are played, what is recorded of them, and what is left out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from vitar_jax.data.interventions import Given, find_change
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Stream, Trajectory
from vitar_jax.errors import DataError
from vitar_jax.evaluation.outcomes import read_outcomes
from vitar_jax.evaluation.predict import predict
from vitar_jax.evaluation.results import table, write_scores
from vitar_jax.evaluation.rules import find_rules

PROCESSOR = tiny.processor(12)


class Seer:
    """A player that says on which side the image is brighter."""

    workers = 2
    settings: dict[str, Any] = {}
    processor = PROCESSOR

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(2)

    def note(self, sample: Sample) -> str:
        return ""

    def start(self) -> None:
        """Is always ready."""

    def begin(self, sample: Sample, member: int = 0) -> Episode:
        return Episode(sample, PROTOCOLS["plain"], PROCESSOR, Limits(tokens=300, turn_tokens=20), member=member)

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        for (episode,) in groups:
            values = np.asarray(episode.images[0].pixels.convert("L"), float)
            left, right = values[:, :42].mean(), values[:, 42:].mean()
            text = "neither" if abs(left - right) < 1 else "left" if left > right else "right"
            episode.add_turn([*PROCESSOR.chat.text(text), PROCESSOR.chat.im_end], None)
            yield episode

    def record(self, episode: Episode, *, stream: Stream = "on_policy", policy_version: int = 0) -> Trajectory:
        return episode.trajectory(stream=stream, policy_version=policy_version, banned_sha256="")


def spot(number: int, *, boxed: bool = True) -> Sample:
    """A bright square on a dark image, on the left for even numbers."""
    values = np.full((84, 84), 40, np.uint8)
    x = 10 if number % 2 == 0 else 54
    values[20:40, x : x + 20] = 200
    side = "left" if number % 2 == 0 else "right"
    boxes = (Box(x, 20, x + 20, 40, "original"),) if boxed else ()
    return Sample(f"s{number}", "On which side is it?", (Image.fromarray(values),), side, boxes=boxes)


def evaluate(directory: Path, source: list[Sample], control: str = "", **given: Any) -> dict[str, Any]:
    change = find_change(control, Given(source, len(source))) if control else None
    settings = {"control": control} if control else {}
    player: Any = Seer()
    predict(player, source, directory, count=len(source), title="t", change=change, control=settings, **given)  # type: ignore[arg-type]
    return write_scores(directory, find_rules(["exact"]))


def score(found: dict[str, Any]) -> float:
    return found["rules"][found["primary"]]["score"]


def test_a_player_that_looks_is_seen_to_look(tmp_path: Path) -> None:
    source = [spot(number) for number in range(6)]
    expected = {
        "": 1.0,
        "blank": 0.0,
        "region_erased": 0.0,
        "erased:33": 1.0,
        "erase_elsewhere": 1.0,
        "region_only": 1.0,
        "flip": 0.0,
        "flip:swap": 1.0,
        "blur:4": 1.0,
    }
    for control, right in expected.items():
        found = evaluate(tmp_path / f"run-{control}", source, control)
        assert score(found) == right and found["failures"] == 0 and "left_out" not in found, control


def test_swapped_sides_are_recorded_and_told_apart(tmp_path: Path) -> None:
    source = [spot(0), Sample("s1", "What is it?", spot(1).images, "right")]
    found = evaluate(tmp_path, source, "flip:swap")
    first, second = read_outcomes(tmp_path)
    assert (first.answer, first.prediction, second.answer) == ("right", "right", "left")
    assert evaluate(tmp_path, source, "flip:swap") == found  # which plays nothing again
    named = Sample("s2", "What is it?", spot(1).images, "a square")
    breakdown = evaluate(tmp_path / "some", [spot(0), named], "flip")["rules"]["exact/1"]["breakdowns"]["names_side"]
    assert {key: value["n"] for key, value in breakdown.items()} == {"False": 1, "True": 1}


def test_samples_that_lack_what_the_control_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = [spot(0), spot(1, boxed=False), spot(2), spot(3, boxed=False)]
    with pytest.raises(DataError, match="region_only: sample s1: has no box or mask.*; --skip_missing leaves such samples out"):
        evaluate(tmp_path / "strict", source, "region_only")
    found = evaluate(tmp_path / "skipping", source, "region_only", skip_missing=True)
    assert (found["samples"], found["failures"], found["left_out"]) == (2, 0, 2) and score(found) == 1
    assert "2 samples lack what the control needs and are left out" in table(found)
    left_out = json.loads((tmp_path / "skipping" / "left_out.json").read_text())
    assert left_out.keys() == {"s1", "s3"} and left_out["s1"].startswith("sample s1: has no box or mask")


def test_an_image_without_another_patients_is_counted(tmp_path: Path) -> None:
    one = [Sample(f"s{n}", "Which?", spot(n).images, "left", metadata={"patient": "p"}) for n in range(2)]
    other = Sample("s2", "Which?", spot(3).images, "right", metadata={"patient": "q"})
    assert evaluate(tmp_path / "one", one, "wrong_image", skip_missing=True)["left_out"] == 2
    assert "left_out" not in evaluate(tmp_path / "two", [one[0], other], "wrong_image", skip_missing=True)
