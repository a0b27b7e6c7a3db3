"""Traces from label masks: their answers follow from the pixels alone, and what is read back has every mask."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import curate
from data_prep.curation import masks
from data_prep.curation.detections import Annotated, admit
from data_prep.curation.traces import make_traces
from vitar_jax.data import questions
from vitar_jax.episodes.object_tags import mentions, without_tags
from vitar_jax.episodes.sample import Sample

WIDTH, HEIGHT = 80, 60
NAMES = {1: "oedema", 2: "necrotic_core", 3: "cyst"}


def rectangle(values: np.ndarray, left: int, top: int, width: int, height: int, value: int) -> None:
    values[top : top + height, left : left + width] = value


def labels() -> dict[str, np.ndarray]:
    """Two lesions of one class beside one of another, a class in three parts, and an image without anything."""
    made = {name: np.zeros((HEIGHT, WIDTH), np.uint8) for name in ("a", "b", "c", "d")}
    rectangle(made["a"], 4, 4, 20, 16, 1)  # upper left, 320 pixels
    rectangle(made["a"], 50, 36, 10, 8, 2)  # lower right, 80 pixels
    rectangle(made["b"], 4, 30, 8, 10, 3)
    rectangle(made["b"], 60, 28, 12, 14, 3)
    for left in (4, 30, 60):
        rectangle(made["c"], left, 4, 8, 8, 1)
    rectangle(made["c"], 2, 40, 30, 16, 2)
    rectangle(made["d"], 5, 5, 2, 2, 1)  # a slip of the pen
    return made


def write(folder: Path, made: Mapping[str, np.ndarray]) -> list[str]:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for name, values in made.items():
        Image.fromarray(values).save(folder / "labels" / f"{name}.png")
        Image.fromarray(rng.integers(0, 255, values.shape, np.uint8)).save(folder / "images" / f"{name}.png")
    (folder / "names.yaml").write_text("names:\n" + "".join(f"  {n}: {name}\n" for n, name in NAMES.items()))
    return [
        "--format=masks",
        f"--annotations={folder}/labels",
        f"--images={folder}/images",
        f"--classes={folder}/names.yaml",
        "--traces",
    ]


def traced(folder: Path, *flags: str, made: Mapping[str, np.ndarray] | None = None) -> tuple[list[Sample], dict[str, Any]]:
    curate.main([*write(folder, labels() if made is None else made), f"--output={folder}/out", *flags])
    return [*questions.read(folder / "out" / "traces.jsonl")], json.loads((folder / "out" / "report.json").read_text())


def quantity(direction: str, pixels: np.ndarray) -> float:
    """Returns the quantity that is greatest in the answer."""
    y, x = np.nonzero(pixels)
    return {
        "larger": pixels.sum(),
        "smaller": -pixels.sum(),
        "higher": -y.mean(),
        "lower": y.mean(),
        "further left": -x.mean(),
        "further right": x.mean(),
    }[direction]


def test_answers_follow_from_the_pixels(tmp_path: Path) -> None:
    rows, report = traced(tmp_path)
    seen = set()
    for row in rows:
        (chosen,) = (one for one in row.objects if one.in_answer)
        assert all(one.in_reasoning for one in row.objects)
        assert [box.xyxy for box in row.boxes] == [chosen.mask.box.xyxy]
        kind = row.metadata["kind"]
        if kind in ("size", "height", "side"):
            (direction,) = re.findall(r"Which (?:is|lies) ((?:further )?\w+)", row.question)
            assert chosen is max(row.objects, key=lambda one: quantity(direction, one.mask.array))
            seen.add(direction)
        elif kind == "largest":
            assert chosen is max(row.objects, key=lambda one: one.mask.area)
            assert len({one.caption for one in row.objects}) == len(row.objects) == 2
        else:
            y, x = np.argwhere(chosen.mask.array).mean(axis=0)
            down, across = np.digitize(y, [HEIGHT / 3, 2 * HEIGHT / 3]), np.digitize(x, [WIDTH / 3, 2 * WIDTH / 3])
            down, across = ("upper", "middle", "lower")[down], ("left", "middle", "right")[across]
            assert row.answer == f"In the {'centre' if down == across else f'{down} {across}'}."
    assert len(seen) >= 3 and report["kinds"].keys() == {"size", "height", "side", "largest", "where"}
    assert report["rows"] == {"traces": len(rows)}


def test_masks_are_the_pixels_of_the_labels(tmp_path: Path) -> None:
    """Each object is one connected part, and its name that of its class in the file of names."""
    made = labels()
    rows, _ = traced(tmp_path)
    by_image = {Image.open(tmp_path / "images" / f"{name}.png").tobytes(): values for name, values in made.items()}
    for row in rows:
        values = by_image[Image.open(row.images[0]).tobytes()]
        for one in row.objects:
            (value,) = np.unique(values[one.mask.array])
            assert NAMES[value].replace("_", " ") == one.caption
            left, top, right, bottom = map(int, one.mask.box.xyxy)
            assert one.mask.area == (values[top:bottom, left:right] == value).sum()


def test_a_trace_has_the_form_of_vrt(tmp_path: Path) -> None:
    rows, _ = traced(tmp_path)
    for row in rows:
        assert row.demonstration and not row.demonstration.looks
        answer = row.demonstration.answer
        assert mentions(answer.thought) == [one.name for one in row.objects] == [f"obj{n + 1}" for n in range(len(row.objects))]
        assert mentions(answer.text) == [one.name for one in row.objects if one.in_answer]
        assert row.answer == without_tags(answer.text)
        assert answer.thought.count("<ver>") == len(row.objects) and answer.text.count("<vea>") == 1
        assert set(row.metadata["classes"]) <= {"comp", "loc"}
    size = next(row for row in rows if row.metadata["kind"] == "size" and row.objects[0].caption != row.objects[1].caption)
    assert "covers 6.7 % of the image; its centre is in the upper left of the image." in size.demonstration.answer.thought


def test_two_objects_of_a_class_are_told_apart_by_their_side(tmp_path: Path) -> None:
    """Sides are those of the image. No question asks which of the two lies further left, because their words say so."""
    rows, report = traced(tmp_path, made={"b": labels()["b"]})
    (row,) = rows
    assert row.metadata["kind"] == "size"
    assert set(re.findall(r"the \w+ cyst", row.question)) == {"the left cyst", "the right cyst"}
    larger = "larger" in row.question
    assert row.answer == ("The right cyst." if larger else "The left cyst.")
    assert report["rejected"]["side: no two objects to compare"] == 1


def test_small_parts_are_counted_and_left_out(tmp_path: Path) -> None:
    _, report = traced(tmp_path)
    assert report["rejected"]["object of fewer than 16 pixels"] == 1


def test_what_is_not_clear_is_not_asked(tmp_path: Path) -> None:
    """Two objects of nearly one size, side by side, on the border of two ninths of the image."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    rectangle(values, 22, 10, 10, 20, 1)
    rectangle(values, 34, 10, 10, 19, 2)
    rows, report = traced(tmp_path, made={"a": values})
    assert {row.metadata["kind"] for row in rows} == {"side"}
    reasons = {"size: no two objects that differ clearly", "height: no two objects that differ clearly"}
    reasons |= {"largest: no object that is clearly the largest", "where: an object between two parts of the image"}
    assert report["rejected"].keys() == reasons


def test_the_same_labels_and_seed_give_the_same_file(tmp_path: Path) -> None:
    for name, flags in (("a", []), ("b", []), ("c", ["--seed=1"]), ("d", ["--count=3"])):
        traced(tmp_path / name, *flags)
    files = [(tmp_path / name / "out" / "traces.jsonl").read_bytes() for name in "abcd"]
    assert files[0] == files[1] != files[2] and len(files[3].splitlines()) == 3
    assert (tmp_path / "a" / "out" / "sheet" / "index.html").read_text().count("<article>") == len(files[0].splitlines())


def test_neither_the_order_nor_the_direction_tells_the_answer(tmp_path: Path) -> None:
    annotations, images, classes = (Path(flag.partition("=")[2]) for flag in write(tmp_path, {"a": labels()["a"]})[1:4])
    (record,) = masks.read(annotations, images, classes, outlines=True)
    assert isinstance(record, Annotated)
    rows = [row for seed in range(30) for row in make_traces([admit(record)], seed, 0, tmp_path / "out").traces]
    for kind, direction in (("size", "larger"), ("height", "higher"), ("side", "further left")):
        some = [row for row in rows if row.metadata["kind"] == kind]
        seen = {(row.objects[0].in_answer, direction in row.question) for row in some}
        assert len(some) == 30 and len(seen) == 4


@pytest.mark.parametrize("flags", [["--format=yolo"], ["--endpoint=http://x", "--model=y", "--verifier_model=z"]])
def test_traces_need_masks_and_no_endpoint(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        traced(tmp_path, *flags)
    assert "error: --traces: needs --format=masks, and no --endpoint" in capsys.readouterr().err
