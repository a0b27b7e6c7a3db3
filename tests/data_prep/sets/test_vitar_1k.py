"""Interactive examples: what is built is a demonstration that plays."""

import json

import pytest

from data_prep.reading.published import Published
from data_prep.sets.vitar_1k import QUESTIONS, SET, read
from tests.kit.datasets import assert_round_trip, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer, Demonstration, Look
from vitar_jax.errors import DataError

LOOK = {"thought": "A spot.", "actions": [{"name": "mark_bbox", "arguments": {"box": [[10, 20, 40, 50]]}}]}


def end(answer):
    return {"thought": "Rows.", "actions": [{"name": "Terminate", "arguments": {"answer": answer}}]}


END = end("B")
RECORD = {"image": "a.png", "question": "Which texture?", "options": ["flat", "rows"], "turns": [LOOK, END]}


def look(name, *box):
    return {"thought": "", "actions": [{"name": name, "arguments": {"box": [list(box)]}}]}


def published(folder, **change):
    lines = "".join(json.dumps(record) + "\n" for record in (RECORD, RECORD | change))
    return write_files(folder, {QUESTIONS: lines, "images/a.png": picture(9, size=(64, 64))})


def test_turns_become_a_demonstration(build_set, tmp_path):
    source = published(tmp_path / "source", turns=[json.dumps(look("zoom", 0, 0, 64, 64)), json.dumps(END)], options=None)
    data_dir = build_set("vitar_1k", source)
    assert_round_trip(SET.name, read, source, data_dir)
    first, second = read_back(data_dir, "vitar_1k", "train")
    shown = first.demonstration
    marked = Look("A spot.", "mark", (Box(10, 20, 40, 50, "original"),))
    assert shown == Demonstration((marked,), Answer("Rows.", "B")) and first.answer == "B"
    assert second.demonstration is not None and second.demonstration.looks[0].tool == "zoom" and second.options == ()


@pytest.mark.parametrize("gold", ["B", "(B)", "rows", "B. rows"])
@pytest.mark.parametrize("options", [["flat", "rows"], ["A. flat", "B. rows"], "['flat', 'rows']", {"A": "flat", "B": "rows"}])
def test_a_gold_answer_becomes_a_letter(tmp_path, gold, options):
    sample = read(Published(published(tmp_path, turns=[LOOK, end(gold)], options=options)))["train"][1].sample
    assert (sample.answer, sample.options) == ("B", (("A", "flat"), ("B", "rows")))
    assert sample.demonstration is not None and sample.demonstration.answer.text == "B"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"turns": [LOOK]}, "got 1 turns, expected 2"),
        ({"turns": [END, END]}, "turn 0: expected a call of mark or zoom"),
        ({"turns": [LOOK, LOOK]}, "turn 1: got a tool call, expected an answer"),
        ({"turns": ["{", END]}, "turn 0: The turn is not one JSON object"),
        ({"turns": [look("cut", 0, 0, 9, 9), END]}, "turn 0: expected a call of mark or zoom"),
        ({"turns": [look("mark", 9, 9, 3, 3), END]}, "turn 0: "),
        ({"turns": [look("mark", 0, 0, 65, 9), END]}, r"turn 0: got box .*65.*, expected one within the image of size 64 x 64"),
        ({"turns": [look("mark", 0.1, 0.2, 0.6, 0.9), END]}, "turn 0: got box .* looks like shares"),
        ({"turns": [{"actions": LOOK["actions"]}, END]}, "turn 0: thought is missing"),
        ({"options": ["flat"]}, "options: got one option, 'flat', expected several"),
        ({"turns": [LOOK, end("C")]}, "turn 1: answer: got .C., expected one of the options A .flat."),
        ({"image": "b.png"}, "no such image: b.png"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"{QUESTIONS}:2: {words}"):
        read(Published(published(tmp_path, **change)))
