"""VRT's turns: what is read of them, and that what was written is read again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.object_tags import mentions, renumber, without_tags
from vitar_jax.episodes.trace_parser import parse_trace, write_trace
from vitar_jax.errors import DataError

THOUGHT = "A nodule (<ver><obj1></ver>) beside the aorta (<ver><obj2></ver>)."
ANSWER = "The nodule (<vea><obj1></vea>)."
TURN = (
    "<think>A nodule (<ver><obj1> [SEG]</ver>) beside the aorta (<ver><obj2> [SEG]</ver>).</think>\n\n"
    "<answer>The nodule (<vea><obj1> [SEG]</vea>).</answer>"
)
MARKS = ("<think>", "</think>", "<answer>", "</answer>", "[SEG]")


def test_a_turn_is_written_as_published():
    assert write_trace(THOUGHT, Answer(ANSWER)) == TURN
    read = parse_trace(TURN)
    assert (read.thought, read.outcome) == (THOUGHT, Answer(ANSWER))


WORDS = ["a", " ", "\n", "<", ">", "(", "<obj1>", "<ver>", "</vea>", "<obj12>", "é", "<obj>"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=30).map("".join).filter(lambda text: not any(mark in text for mark in MARKS))
PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "[SEG]", " [SEG]", "<obj1>", "a", "\n"]))


@given(TEXT.map(str.strip), TEXT.map(str.strip).filter(bool))
def test_what_is_written_is_read(thought, answer):
    read = parse_trace(write_trace(thought, Answer(answer)))
    assert (read.thought, read.outcome) == (thought, Answer(answer))


@given(PIECES.map("".join))
def test_any_text_is_read(text):
    read = parse_trace(text)
    if isinstance(read.outcome, ActionError):
        closed = "</answer>" in text.partition("<answer>")[2]
        assert read.outcome.message == ("The answer is empty." if closed else "The turn has no <answer>.")
    else:
        assert "[SEG]" not in read.outcome.text


@pytest.mark.parametrize("text", ["a [SEG]", "<think>", "</answer>"])
def test_a_text_cannot_spell_markup(text):
    for thought, answer in ((text, "b"), ("a", text)):
        with pytest.raises(DataError, match="which is markup"):
            write_trace(thought, Answer(answer))
    with pytest.raises(DataError, match="cannot call a tool"):
        write_trace("a", ToolCall("zoom"))


def test_objects_are_numbered_as_they_are_mentioned():
    texts, names = renumber(["b <obj7>, a <obj2>, b <obj7>", "c <obj11> and a <obj2>"])
    assert texts == ["b <obj1>, a <obj2>, b <obj1>", "c <obj3> and a <obj2>"]
    assert names == {"obj7": "obj1", "obj2": "obj2", "obj11": "obj3"}
    assert mentions(texts[0]) == ["obj1", "obj2", "obj1"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (ANSWER, "The nodule."),
        ("Both (<vea><obj1>, <obj2></vea>) are (they say) round.", "Both are (they say) round."),
        ("The ring <vea><obj1></vea>.", "The ring."),
        ("Nothing.", "Nothing."),
    ],
)
def test_a_reader_sees_no_tags(text, plain):
    assert without_tags(text) == plain
