"""The bundle that ViTAR's published code evaluates."""

import json

import pytest

from data_prep.reading.published import Published
from data_prep.sets.vitar_eval import QUESTIONS, SET, read
from tests.kit.datasets import assert_round_trip, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.errors import DataError

RECORD = {
    "question": " Where does the contrast track into? ",
    "image": ["images/PMC1_Fig3.jpg", "images/PMC1_Fig4.jpg"],
    "options": ["The bladder", "The ureters ", "The vagina"],
    "answer": "The ureters",
    "dataset": "PMC-VQA_test",
    "subset": "",
}


def published(folder, **change):
    images = {name: picture(n) for n, name in enumerate(RECORD["image"])}
    return write_files(folder, {QUESTIONS: json.dumps([RECORD, RECORD | change]), **images})


def test_texts_become_letters(build_set, tmp_path):
    source = published(tmp_path / "source", subset="MR", options=[], answer="free text")
    data_dir = build_set("vitar_eval", source)
    assert_round_trip(SET.name, read, source, data_dir)
    first, second = read_back(data_dir, "vitar_eval", "test")
    assert first.answer == "B" and first.options == (("A", "The bladder"), ("B", "The ureters"), ("C", "The vagina"))
    assert (first.question, len(first.images)) == ("Where does the contrast track into?", 2)
    assert first.metadata == {"dataset": "PMC-VQA_test", "subset": ""} and second.metadata["subset"] == "MR"
    assert second.answer == "free text" and second.options == ()


@pytest.mark.parametrize("gold", ["B", "(B)", "the ureters", "The  ureters."])
def test_a_gold_answer_becomes_a_letter(tmp_path, gold):
    (_, record) = read(Published(published(tmp_path, answer=gold)))["test"]
    assert record.sample.answer == "B"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "ureters"}, "answer: got 'ureters', expected one of the options A .The bladder., B"),
        ({"options": ["The bladder", "The bladder"], "answer": "The bladder"}, "answer: got .* fits the options A and B"),
        ({"options": ["The ureters", float("nan")]}, "options: got nan, expected text"),
        ({"options": None}, "options: got None, expected a list"),
        ({"image": "images/PMC1_Fig3.jpg"}, "image: got .* a list"),
        ({"image": [1]}, "image: got .* a list of file names"),
        ({"image": ["images/none.jpg"]}, "no such image: none.jpg"),
        ({"dataset": ""}, "dataset is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"{QUESTIONS}, record 1: {words}"):
        list(read(Published(published(tmp_path, **change)))["test"])
