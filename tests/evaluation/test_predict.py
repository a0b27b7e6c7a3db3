"""Evaluations under a control: which samples are played, what is recorded of them, and what is left out."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.errors import Main, check_error
from vitar_jax import evaluate as command
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import Sample, SegmentedObject
from vitar_jax.episodes.trajectory import Stream, Trajectory
from vitar_jax.errors import DataError
from vitar_jax.evaluation.comparison import compare
from vitar_jax.evaluation.controls import Variant
from vitar_jax.evaluation.outcomes import read_outcomes
from vitar_jax.evaluation.predict import predict
from vitar_jax.evaluation.reliance import dependence, dependence_table
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


def evaluate(directory: Path, source: list[Sample], control: str = "", of: str = "", **given: Any) -> dict[str, Any]:
    variant, player = Variant(control=control, of=of), cast(Any, Seer())
    change, settings = variant.intervene(source, len(source), directory.parent / of)
    predict(player, source, directory, count=len(source), title="t", change=change, control=settings, **given)
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


def test_two_runs_are_compared_in_what_they_rely_on(tmp_path: Path) -> None:
    """Where sides are swapped, so are the gold answers, which are then those of the same samples."""
    source = [spot(number) for number in range(8)]
    for control in ("", "blank", "flip", "flip:swap"):
        evaluate(tmp_path / f"run-{control}", source, control)
    found = compare(tmp_path / "run-", tmp_path / "run-blank")["reliance"]
    assert (found["control"], found["rule"], found["added"]["value"], found["changed"]["value"]) == ("blank", "exact/1", 1, 1)
    assert (found["stay_right"]["value"], found["turn_wrong"]["value"], found["stay_right"]["n"]) == (0, 1, 8)
    low, high = found["added"]["interval"]
    assert low < 1 == high
    assert compare(tmp_path / "run-blank", tmp_path / "run-")["reliance"] == found
    assert compare(tmp_path / "run-", tmp_path / "run-")["reliance"] is None
    (tmp_path / "run-" / "scores.json").write_text("{}")  # as early versions, which named no primary rule
    assert compare(tmp_path / "run-", tmp_path / "run-blank")["reliance"] == found
    swapped = compare(tmp_path / "run-", tmp_path / "run-flip:swap")["reliance"]
    assert (swapped["added"]["value"], swapped["changed"]["value"], swapped["stay_right"]["value"]) == (0, 1, 1)
    evaluate(tmp_path / "other", [dataclasses.replace(one, answer="right") for one in source])
    with pytest.raises(DataError, match="the gold answers of 's0' differ"):
        compare(tmp_path / "run-", tmp_path / "other")
    # Another checkpoint under a control says nothing of this one.
    settings = json.loads((tmp_path / "run-blank" / "settings.json").read_text())
    (tmp_path / "run-blank" / "settings.json").write_text(json.dumps(settings | {"weights": "others"}))
    assert compare(tmp_path / "run-", tmp_path / "run-blank")["reliance"] is None


def outlining(trajectory: Trajectory) -> Trajectory:
    """Six of eight reasonings outline the spot, and two a place beside it."""
    number = int(trajectory.sample_id[1:])
    (box,), pixels = trajectory.boxes, np.zeros((84, 84), bool)
    down = 0 if number < 6 else 40
    pixels[int(box.y1) + down : int(box.y2) + down, int(box.x1) : int(box.x2)] = True
    masks = (ObjectMask(0, "obj1", "reasoning", Mask.of(pixels, "original"), 0.9),)
    return dataclasses.replace(trajectory, turns=(dataclasses.replace(trajectory.turns[0], masks=masks),))


def with_mask(sample: Sample) -> Sample:
    pixels = np.zeros((84, 84), bool)
    (box,) = sample.boxes
    pixels[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
    return dataclasses.replace(sample, objects=(SegmentedObject("obj1", Mask.of(pixels, "original"), in_reasoning=True),))


def test_a_sweep_has_a_dose_curve(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Played as the command names its folders; the command scores and draws them. One sample has no region."""
    source = [spot(number) for number in range(4)] + [spot(4, boxed=False)]
    folders = {"0": "mine", **{dose: f"mine-erased-{dose}" for dose in ("33", "67", "100")}}
    for dose, folder in folders.items():
        evaluate(tmp_path / "evaluation" / folder, source, f"erased:{dose}" if dose != "0" else "", skip_missing=True)
    arguments = [f"--workdir={tmp_path}", "--name=mine", "--phase=score", "--rules=exact", "--sweep=erased"]
    assert main(command, *arguments) == 0
    directory = tmp_path / "evaluation" / "mine-sweep_erased"
    rows = json.loads((directory / "sweep.json").read_text())
    assert [(row["dose"], row["score"], row["n"]) for row in rows] == [("0", 1, 5), ("33", 1, 4), ("67", 1, 4), ("100", 0, 4)]
    assert [row["lost"] and row["lost"]["value"] for row in rows] == [None, 0, 0, 1]
    assert all(row["interval"][0] <= row["score"] <= row["interval"][1] for row in rows)
    table = capsys.readouterr().out.splitlines()
    assert table[-2].split()[:3] == ["100", "4", "0.0%"] and table[-1] == f"figure: {directory / 'sweep.png'}"
    with Image.open(directory / "sweep.png") as figure:
        assert np.asarray(figure.convert("RGB")).std() > 5
    assert main(command, *arguments, "--control=blank") == 2
    check_error(capsys.readouterr().err, "--sweep: chooses controls itself")


def test_answers_depend_on_the_evidence_that_the_model_outlined(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path = tmp_path / "evaluation"
    source = [with_mask(spot(number)) for number in range(8)]
    evaluate(tmp_path / "grpo", source, reward=outlining)
    scores = {}
    for control in ("erase_masks", "keep_masks", "erase_elsewhere", "erase_gold"):
        scores[control] = score(evaluate(tmp_path / control, source, control, "" if control == "erase_gold" else "grpo"))
    assert scores == {"erase_masks": 0.25, "keep_masks": 1.0, "erase_elsewhere": 1.0, "erase_gold": 0.0}
    evaluate(tmp_path / "blank", source, "blank")  # no control on masks
    evaluate(tmp_path / "other", source, "erase_elsewhere")  # on the reference
    found = dependence(tmp_path / "grpo", sorted(tmp_path.iterdir()))
    assert {name: (share["value"], share["n"]) for name, share in found["controls"].items()} == {
        "erase_elsewhere": (0, 8),
        "erase_gold": (1, 8),
        "erase_masks": (0.75, 8),
        "keep_masks": (0, 8),
    }
    assert (found["own_evidence"]["value"], found["own_evidence"]["n"]) == (0.75, 8)
    said = dependence_table(found).splitlines()
    assert said[3].split()[:3] == ["erase_masks", "8", "75.0%"] and said[5].split()[:4] == ["own", "evidence", "8", "75.0%"]
    # The command says the same.
    arguments = [f"--workdir={tmp_path.parent}", "--phase=score", "--name=erase_masks", "--rules=exact"]
    capsys.readouterr()
    assert main(command, *arguments, "--control=erase_masks", "--of=grpo") == 0
    assert dependence_table(found) in capsys.readouterr().out
    assert json.loads((tmp_path / "erase_masks" / "dependence.json").read_text()) == found
    assert main(command, *arguments, "--control=blank", "--of=grpo") == 2
    check_error(capsys.readouterr().err, "of: 'grpo' has no effect on control 'blank'")
    # A run on other masks would be another run.
    recorded = json.loads((tmp_path / "erase_masks" / "settings.json").read_text())["control"]
    assert recorded["of"] == "grpo" and len(recorded["masks_sha256"]) == 64
