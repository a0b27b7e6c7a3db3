"""Whatever a record holds comes back as it was."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.building.records import DataSet, Record
from data_prep.building.store import build, decode, encode, pixel_hash
from data_prep.reading.published import ImageFile
from tests.kit.datasets import card, read_back
from tests.kit.images import picture
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample, SegmentedObject
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BOXES = st.builds(
    lambda x, y, w, h, frame: Box(x, y, x + w, y + h, frame),
    *[st.floats(-1e6, 1e6)] * 2,
    *[st.floats(0.01, 1e6)] * 2,
    st.sampled_from(["original", "normalized"]),
)
OBJECTS = st.builds(
    lambda name, pixels, caption, in_reasoning, in_answer: SegmentedObject(
        name, Mask.of(np.reshape(pixels, (2, 3)), "original"), caption, in_reasoning, in_answer
    ),
    TEXT,
    st.lists(st.booleans(), min_size=6, max_size=6),
    TEXT,
    *[st.booleans()] * 2,
)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT, st.lists, max_leaves=5)
SAMPLES = st.builds(
    lambda options, thoughts, tool, boxes, **fields: Sample(
        sample_id="",
        images=(),
        answer="",
        options=tuple(zip("ABCDE", options, strict=False)),
        boxes=tuple(boxes),
        demonstration=Demonstration(
            tuple(Look(thought, tool, tuple(boxes), n, {"centre": 1.5}) for n, thought in enumerate(thoughts[1:])),
            Answer(thoughts[0], tool),
        )
        if thoughts
        else None,
        **fields,
    ),
    options=st.lists(TEXT, max_size=5),
    thoughts=st.lists(TEXT, max_size=4),
    tool=TEXT,
    boxes=st.lists(BOXES, max_size=3),
    question=TEXT,
    metadata=st.dictionaries(TEXT, VALUES, max_size=3),
    objects=st.lists(OBJECTS, max_size=2).map(tuple),
)


def made(records: list[Record], data_dir, split: str = "train"):
    dataset = DataSet("set", "A set", "url", "licence", "citation", "layout")
    return build(dataset, {split: records}, data_dir, origin="here", checksums={})


def record(sample: Sample, *images: bytes, where: str = "file:1", patient: str = "") -> Record:
    return Record(sample, tuple(ImageFile(f"{n}.png", lambda b=b: b) for n, b in enumerate(images)), where, patient)


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SAMPLES, min_size=1, max_size=8))
def test_what_is_written_is_read_back(tmp_path, samples):
    numbered = [replace(sample, sample_id=f"é{n}") for n, sample in enumerate(samples)]
    images = [[picture(n * 10 + i) for i in range(n % 4)] for n in range(len(samples))]
    made([record(sample, *files) for sample, files in zip(numbered, images, strict=True)], tmp_path)
    for sample, back, files in zip(numbered, read_back(tmp_path, "set", "train"), images, strict=True):
        assert replace(back, images=()) == sample
        assert [image.tobytes() for image in back.images] == [open_image(file).tobytes() for file in files]


def test_one_picture_in_two_encodings_is_one_image(tmp_path):
    sample = Sample("a", "q", (), "")
    grey = io.BytesIO()
    Image.new("L", (8, 6), 7).save(grey, "BMP")
    rgb = picture(7 + 256 * 7 + 65536 * 7)
    assert pixel_hash(grey.getvalue()) == pixel_hash(rgb) != pixel_hash(picture(8))
    made([record(sample, rgb), record(replace(sample, sample_id="b"), grey.getvalue())], tmp_path)
    assert card(tmp_path, "set")["splits"] == {"train": {"questions": 2, "images": 1}}


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "split train: no questions found"),
        ([Sample("a", "q", (), "C", options=(("A", "x"), ("B", "y")))], "file:1: answer: got 'C', expected one of A, B"),
        (
            [Sample("a", "q", (), "A", options=(("A", "x"), ("B", "y")), answers=("A", "C"))],
            "file:1: answer: got 'C', expected one of A, B",
        ),
        ([Sample("a", "q", (), "")] * 2, "file:1: duplicate id a"),
    ],
)
def test_a_wrong_record_leaves_nothing(tmp_path, records, words):
    with pytest.raises(DataError, match=words):
        made([record(sample) for sample in records], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    def broken() -> bytes:
        raise OSError("gone")

    for read, words in ((lambda: b"", "not an image"), (broken, "gone")):
        with pytest.raises(DataError, match=f"file:1: image a.png: .*{words}"):
            made([Record(Sample("a", "q", (), ""), (ImageFile("a.png", read),), "file:1")], tmp_path)
    with pytest.raises(ImageError):
        pixel_hash(b"")


def test_no_two_splits_may_share_a_patient_unseen(tmp_path):
    dataset = DataSet("set", "A set", "url", "licence", "citation", "layout")
    splits = {
        "train": [record(Sample(f"a{n}", "q", (), ""), picture(n), patient=f"Secret{n}") for n in range(5)],
        "test": [record(Sample(f"b{n}", "q", (), ""), picture(n + 4), patient=f"Secret{n + 3}") for n in range(3)],
        "other": [record(Sample("c", "q", (), ""), picture(99), patient="Secret0")],
    }
    build(dataset, splits, tmp_path, origin="here", checksums={})
    assert card(tmp_path, "set")["leaks"] == [
        {"splits": ["train", "test"], "images": 1, "patients": 2},
        {"splits": ["train", "other"], "images": 0, "patients": 1},
    ]
    place = tmp_path / "set" / "1.0.0"
    text = (place / "CARD.md").read_text()
    assert "1 of the 3 images of test are also in train. 2 of the 3 patients of test are also in train." in text
    assert not any(b"Secret" in path.read_bytes() for path in place.iterdir())


def test_a_record_that_an_older_version_built_is_read():
    """Its demonstration was a list: thoughts, tool, boxes."""
    example = {name: value.encode() for name, value in encode(Sample("s", "q", (), "B"), []).items() if name != "images"}
    old = json.dumps([["I mark it.", "So it is."], "mark", [[1, 2, 3, 4, "original"]]]).encode()
    sample = decode(example | {"demonstration": old, "images": []})
    look = Look("I mark it.", "mark", (Box(1, 2, 3, 4, "original"),))
    assert sample.demonstration == Demonstration((look,), Answer("So it is.", "B"))
