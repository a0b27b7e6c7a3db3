"""MedXpertQA MM: the real questions with pictures of our own, and the form of the hub."""

import json

import pytest

from data_prep.reading.published import Published
from data_prep.sets.medxpertqa_mm import SET, read
from tests.kit.datasets import assert_round_trip, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.errors import DataError

RECORD = {
    "id": "MM-0",
    "question": "Which step?\nAnswer Choices: (A) One (B) Two",
    "options": {"A": "One", "B": "Two"},
    "label": "B",
    "images": ["MM-0-a.jpeg"],
    "medical_task": "Treatment",
    "body_system": "Skeletal",
    "question_type": "Reasoning",
}


def published(folder, **change):
    lines = "".join(json.dumps(record) + "\n" for record in (RECORD, RECORD | {"id": "MM-1"} | change))
    return write_files(
        folder, {"MM/dev.jsonl": json.dumps(RECORD | {"id": "d"}), "MM/test.jsonl": lines, "images/MM-0-a.jpeg": picture(1)}
    )


def test_the_form_of_the_hub(build_set, tmp_path):
    source = published(tmp_path / "source")
    data_dir = build_set("medxpertqa_mm", source)
    assert_round_trip(SET.name, read, source, data_dir)
    sample = read_back(data_dir, "medxpertqa_mm", "test")[0]
    assert (sample.question, sample.answer, sample.options) == ("Which step?", "B", (("A", "One"), ("B", "Two")))


@pytest.mark.parametrize("gold", ["Two", "(B)", "b.", ["B"], "B. Two", 2])
def test_a_gold_answer_becomes_a_letter(tmp_path, gold):
    assert read(Published(published(tmp_path, label=gold)))["test"][1].sample.answer == "B"


@pytest.mark.parametrize(
    "options", ["{'A': 'One', 'B': 'Two'}", [{"letter": "B", "content": "Two"}, {"letter": "A", "content": "One"}]]
)
def test_options_in_other_forms(tmp_path, options):
    assert read(Published(published(tmp_path, options=options)))["test"][1].sample.options == (("A", "One"), ("B", "Two"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "C"}, r"label: got 'C', expected one of the options A \(One\), B \(Two\)"),
        ({"label": ["A", "B"]}, "label: got"),
        ({"options": "A"}, "options: got 'A'"),
        ({"options": [{"letter": "A", "content": 3}]}, "options: got .*texts"),
        ({"options": {"A": "One", "C": "Two"}}, "options: got the options A, C, expected the letters from A on"),
        ({"images": "MM-0-a.jpeg"}, "images: got .* a list"),
        ({"images": [None]}, "images: got"),
        ({"images": ["MM-1.jpeg"]}, "no such image: MM-1.jpeg"),
        ({"medical_task": ""}, "medical_task is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"test.jsonl:2: {words}"):
        read(Published(published(tmp_path, **change)))
