"""Undeclared boxes that all end within 1000, on larger images: refused as thousandths where pixels are improbable."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep import curate
from tests.kit.datasets import write_boxes
from vitar_jax.data import questions
from vitar_jax.episodes.regions import Box, refuse_thousandths
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError

WORDS = "look like thousandths of the sides; declare the unit with --boxes"
BOX = [100, 200, 500, 600]
LOOK = {"looks": [{"thought": "", "tool": "mark", "regions": [[100, 200, 500, 600]]}], "answer": {"thought": ""}}


@pytest.mark.parametrize(
    "sizes, furthest, refused",
    [
        ([(2000, 1600)] * 4, 1000, True),
        ([(2000, 1600)] * 4, 1000.5, False),  # a box that thousandths cannot be
        ([(2000, 1600)] * 2, 900, False),  # both in the upper left: seen once in ten files
        ([(2000, 1600)] * 4 + [(600, 500)] * 100, 900, True),
        ([(1000, 1000)] * 1000, 900, False),
        ([(1024, 1024)] * 20, 1000, False),
        ([(1024, 1024)] * 100, 1000, True),
        ([(4000, 800)], 900, False),
        ([(5000, 5000)], 900, True),
        ([], 0, False),
    ],
)
def test_pixels_are_believed_unless_they_are_improbable(sizes: list[tuple[int, int]], furthest: float, refused: bool) -> None:
    if refused:
        with pytest.raises(ValueError, match=WORDS):
            refuse_thousandths(sizes, furthest)
    else:
        refuse_thousandths(sizes, furthest)


def write(folder: Path, count: int, *, size: tuple[int, int] = (2000, 1600), **columns: Any) -> Path:
    """Writes as many questions, each with an image of its own."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        Image.new("L", size, number).save(folder / f"{number}.png")
        rows.append({"question": f"{number}?", "image": f"{number}.png", "answer": "x", "split": "train", **columns})
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "q.jsonl"


@pytest.mark.parametrize("columns", [{"boxes": [BOX]}, {"demonstration": LOOK}, {"other_boxes": [BOX]}])
def test_a_file_of_questions(columns: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path, 4, **columns)
    with pytest.raises(DataError, match=f"q.jsonl: boxes: .*{WORDS}"):
        questions.read(file)
    for unit, first in (("pixels", (100, 200, 500, 600)), ("1000", (200, 320, 1000, 960))):
        sample = questions.read(file, boxes=unit)[0]
        if sample.boxes:
            assert sample.boxes[0].xyxy == first
    small = write(tmp_path / "small", 40, size=(640, 620), **columns)
    assert len(questions.read(small)) == 40


def test_images_are_opened_only_where_it_is_in_doubt() -> None:
    """At most 16 of them, and none if a box ends beyond 1000."""
    opened: list[str] = []

    def size_of(image: str) -> tuple[int, int]:
        opened.append(image)
        return 2000, 1600

    box = Box(100, 200, 500, 600, "original")
    samples = [Sample(str(number), "Which?", (f"{number}.png",), "x", boxes=(box,)) for number in range(40)]
    with pytest.raises(DataError):
        questions.refuse_thousandths(samples, "q.jsonl", size_of)
    assert 13 <= len(opened) == len(set(opened)) <= 16
    opened.clear()
    far = replace(samples[0], boxes=(box, replace(box, x2=1500)))
    questions.refuse_thousandths([*samples, far], "q.jsonl", size_of)
    assert opened == []


def test_questions_of_ones_own(
    build_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, 4, boxes=[[100, 200, 500, 600]])
    with pytest.raises(SystemExit):
        build_set("own", file)
    assert WORDS in capsys.readouterr().err
    build_set("own", file, "--boxes=pixels")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_annotations(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "images", 4)
    (tmp_path / "images" / "q.jsonl").unlink()
    boxes = {f"{n}.png": [("spot", (100, 200, 500, 600))] for n in range(4)}
    boxes["0.png"].append(("rare", (10, 20, 50, 60)))
    given = [*write_boxes(tmp_path, tmp_path / "images", boxes, kind), f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        curate.main(given)
    assert WORDS in capsys.readouterr().err
    if kind == "coco":
        curate.main([*given, "--boxes=pixels", "--count=1"])
