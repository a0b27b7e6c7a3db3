"""Objects of a question file: masks come back as written, and what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitar_jax.data import questions
from vitar_jax.episodes.regions import Mask, region_to_json
from vitar_jax.episodes.sample import Sample, SegmentedObject
from vitar_jax.errors import DataError

PIXELS = np.zeros((6, 8), bool)
PIXELS[1:4, 2:5] = True
COUNTS = [13, 3, 3, 3, 3, 3, 20]  # by hand, column by column
MASK = {"size": [6, 8], "counts": COUNTS}
OBJECT = {"name": "obj1", "mask": MASK, "caption": "cyst", "in_reasoning": True, "in_answer": True}
TRACE = {"looks": [], "answer": {"thought": "A cyst (<ver><obj1></ver>).", "text": "It (<vea><obj1></vea>)."}}


def traced(folder: Path, objects: Any = (OBJECT,), shown: Any = TRACE) -> tuple[Sample, ...]:
    row = {"question": "Which?", "image": "a.png", "objects": objects, "demonstration": shown}
    (folder / "q.jsonl").write_text(json.dumps(row) + "\n")
    return questions.read(folder / "q.jsonl")


def test_objects_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (sample,) = traced(tmp_path)
    (one,) = sample.objects
    np.testing.assert_array_equal(one.mask.array, PIXELS)
    assert one == SegmentedObject("obj1", Mask.of(PIXELS, "original"), "cyst", True, True)
    assert "objects" not in sample.metadata
    questions.write(tmp_path / "again.jsonl", [sample])
    assert questions.read(tmp_path / "again.jsonl") == (sample,)
    (from_csv,) = traced(tmp_path, objects=json.dumps([OBJECT]))
    assert from_csv.objects == sample.objects


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([OBJECT, OBJECT | {"name": "obj2"}], "demonstration: <obj2> has a mask, but is not mentioned"),
        ([OBJECT | {"name": "obj2"}], "demonstration: <obj1> is mentioned, but has no mask"),
        ([OBJECT, OBJECT], "object 1: got a second object named 'obj1'"),
        ([OBJECT | {"mask": {"size": [6, 8], "counts": [13, 3]}}], r"object 0: .*runs of 16 pixels, expected shape \(6, 8\)"),
        ([OBJECT | {"mask": [1, 2, 3, 4]}], "object 0: .*expected an object with a mask"),
        ([OBJECT | {"mask": region_to_json(Mask.of(PIXELS, "normalized"))}], "object 0: got a mask in frame 'normalized'"),
        ([OBJECT | {"colour": "red"}], "object 0: .*colour"),
        (["obj1"], "object 0: "),
        ([OBJECT, OBJECT | {"name": "obj2", "mask": {"size": [1, 1], "counts": [1]}}], "masks of the sizes"),
        ({"name": "obj1"}, "objects"),
    ],
)
def test_objects_that_do_not_fit_are_named(objects: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=words) as raised:
        traced(tmp_path, objects)
    assert str(raised.value).startswith(f"{tmp_path / 'q.jsonl'}:1: ")
