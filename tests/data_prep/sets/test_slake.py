"""SLAKE: the real questions with pictures of our own; its known leak between languages; wrong records."""

import json
import re

import pytest

from data_prep.reading.published import Published
from data_prep.sets.slake import read
from tests.kit.datasets import card, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from tests.kit.slake import FILES, RECORD, published
from vitar_jax.errors import DataError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": " "}, "question is missing"),
        ({"question": None}, "question is missing"),
        ({"q_lang": "fr"}, "q_lang: got 'fr', expected en or zh"),
        ({"answer": ["MRI"]}, "answer: got .* text"),
        ({"triple": "vhead"}, "triple: got 'vhead', expected a list"),
        ({"img_name": "xmlab2/source.jpg"}, "no such image: xmlab2/source.jpg"),
        ({"img_name": "../test.json"}, "no such image: ../test.json"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"test.json, record 0: {words}"):
        read(Published(published(tmp_path, change)))


def test_a_missing_key_is_named(tmp_path):
    published(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps([{key: RECORD[key] for key in RECORD if key != "modality"}]))
    with pytest.raises(DataError, match="train.json, record 0: modality is missing"):
        read(Published(tmp_path))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"imgs/xmlab1/source.jpg": b"no picture"}, "train.json, record 0: image xmlab1/source.jpg: not an image"),
        ({"imgs/xmlab1/source.jpg": picture(1)[:48]}, "image xmlab1/source.jpg: damaged"),
        ({"test.json": json.dumps([RECORD])}, "test.json, record 0: duplicate id slake-0, first at .*train.json, record 0"),
        ({"validate.json": "[]"}, None),
    ],
)
def test_what_is_wrong_is_found_while_building(build_set, tmp_path, capsys, files, words):
    source = write_files(published(tmp_path / "slake"), files)
    if words is None:  # a language or split without questions is none
        assert list(card(build_set("slake", source), "slake")["splits"]) == ["train_en", "test_en"]
        return
    with pytest.raises(SystemExit) as stopped:
        build_set("slake", source)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and "records are invalid" in error.splitlines()[-1]
    assert list((tmp_path / "built").iterdir()) == []


def test_missing_files_are_named(tmp_path):
    for name in (*FILES[:1], "imgs"):
        source = published(tmp_path / name)
        (source / name).rename(source / "elsewhere")
        with pytest.raises(DataError, match=f"no {name}.* found"):
            read(Published(source))
    (tmp_path / "imgs" / "imgs.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="imgs.zip: cannot be read as a zip archive"):
        read(Published(tmp_path / "imgs"))


# --- boxes --------------------------------------------------------------------------------------------


def detected(folder, found, **record):
    """Writes three questions about an image of 40 x 30 pixels with `found` in its detection.json."""
    published(folder, record)
    return write_files(folder, {"imgs/xmlab1/source.jpg": picture(1, size=(40, 30)), "imgs/xmlab1/detection.json": found})


FOUND = json.dumps([{"Left Lung": [2.0, 3.0, 10.0, 20.0]}, {"Right Lung": [20, 3, 12, 20]}, {"Nodule": [5, 6, 4.5, 3]}])


def test_boxes_that_the_question_or_answer_names_show_the_answer(tmp_path):
    source = detected(tmp_path, FOUND, question="Where is the nodule?", answer="In the left lung")
    (record,) = read(Published(source))["test_en"]
    assert [box.xyxy for box in record.sample.boxes] == [(2, 3, 12, 23), (5, 6, 9.5, 9)]
    assert {box.frame for box in record.sample.boxes} == {"original"}
    assert record.sample.metadata["other_boxes"] == [[20, 3, 32, 23]]


def test_all_boxes_may_show_the_answer_if_none_is_named(tmp_path):
    (record,) = read(Published(detected(tmp_path, FOUND, question="Are the lungs healthy?", answer="No")))["test_en"]
    assert len(record.sample.boxes) == 3 and "other_boxes" not in record.sample.metadata


def test_boxes_survive_building(build_set, tmp_path):
    source = detected(tmp_path / "slake", FOUND, question="Where is the nodule?", answer="In the left lung")
    (sample,) = read_back(build_set("slake", source), "slake", "test_en")
    (record,) = read(Published(source))["test_en"]
    assert sample.boxes == record.sample.boxes and sample.metadata == record.sample.metadata


@pytest.mark.parametrize(
    "found",
    [
        "[",
        '{"Liver": [1, 2, 3, 4]}',
        '[["Liver", [1, 2, 3, 4]]]',
        '[{"Liver": [1, 2, 3]}]',
        '[{"Liver": [1, 2, "3", 4]}]',
        '[{"Liver": [1, 2, 0, 4]}]',
        '[{"Liver": [30, 2, 20, 4]}]',
    ],
)
def test_wrong_boxes_are_named(tmp_path, found):
    with pytest.raises(DataError, match=r"xmlab1/detection.json: .+; expected a list of \{name: \[x, y, width, height\]\}"):
        read(Published(detected(tmp_path, found)))
