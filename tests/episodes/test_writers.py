"""Writing turns: what is written in a format is read back as it was."""

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitar_jax.episodes.actions import Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.parsers import MAX_BRACKETS, PARSERS, write_as_published, write_json, write_plain, write_turn
from vitar_jax.episodes.tools import TOOLS, Observation, Text, tool
from vitar_jax.errors import DataError

written = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
markup = st.sampled_from(
    [
        '{"thought": "", "actions": [{"name": "Terminate", "arguments": {"answer": "C"}}]}',
        '"actions": [{"name": "zoom", "arguments": {"box": [[1, 2, 3, 4]]}}]',
        "[" * (MAX_BRACKETS + 1),
        "]}" * 60,
        '\\"answer\\": \\"',
        "\\[\\u005b{",
        "<answer>B</answer>",
        "```json\n{}\n```",
    ]
)
thoughts = st.lists(written | markup, max_size=3).map("".join)
answers = thoughts.map(str.strip).filter(bool)
edges = st.floats(-9.99e8, 9.99e8) | st.integers(-1000, 1000).map(float)
spans = st.tuples(edges, edges).filter(lambda span: span[0] < span[1])
shown_boxes = st.tuples(spans, spans).map(lambda sides: (sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
indices = st.integers(0, 10**6)
box_calls = st.builds(
    lambda name, boxes, image: ToolCall(name, tuple(boxes[: TOOLS[name].max_boxes]), image),
    st.sampled_from(["mark", "zoom"]),
    st.lists(shown_boxes, min_size=1, max_size=16),
    indices,
)
window_calls = st.builds(
    lambda centre, width, image: ToolCall("window", (), image, {"centre": centre, "width": width}),
    st.floats(0, 255),
    st.floats(1, 255),
    indices,
)
published_calls = st.lists(shown_boxes, min_size=1, max_size=90).map(lambda boxes: ToolCall("mark_as_published", tuple(boxes)))


@given(thoughts, answers.map(Answer) | box_calls | window_calls)
def test_what_is_written_as_json_is_read(thought: str, outcome: Answer | ToolCall) -> None:
    parsed = PARSERS["json"].read(write_json(thought, outcome))
    assert (parsed.thought, parsed.outcome) == (thought, outcome)


@given(thoughts, answers.filter(lambda text: '"' not in text).map(Answer) | published_calls)
def test_what_is_written_as_published_is_read(thought: str, outcome: Answer | ToolCall) -> None:
    assert PARSERS["vitar_reference"].read(write_as_published(thought, outcome)).outcome == outcome


@given(thoughts, answers)
def test_what_is_written_plainly_is_read(thought: str, answer: str) -> None:
    assert PARSERS["plain"].read(write_plain(thought, Answer(answer))) == ParsedTurn(None, None, Answer(answer))


def test_a_text_argument_is_written_and_read() -> None:
    with patch.dict(TOOLS):
        tool("note", "Takes a note.", words=Text())(lambda context, words: Observation(text=words))
        call = ToolCall("note", (), 2, {"words": '[{"' * 60})
        assert PARSERS["json"].read(write_json("{", call)).outcome == call


def test_what_a_format_cannot_hold_is_an_error() -> None:
    with pytest.raises(DataError, match="plain"):
        write_plain("", ToolCall("zoom", ((1.0, 2.0, 3.0, 4.0),)))
    with pytest.raises(DataError, match="quotes"):
        write_as_published("", Answer('so "B"'))


def test_every_parser_that_is_built_in_has_a_writer() -> None:
    assert all(known.write for known in PARSERS.values())


def test_what_is_written_is_what_experts_have_written_before() -> None:
    """Byte for byte: models were trained on it."""
    look = write_json("spöt", ToolCall("zoom", ((1.0, 2.0, 30.0, 40.0),)))
    assert look == '{"thought": "sp\\u00f6t", "actions": [{"name": "zoom", "arguments": {"box": [[1, 2, 30, 40]]}}]}'
    last = write_json("so", Answer("B"))
    assert last == write_as_published("so", Answer("B")) == write_turn("so", "Terminate", answer="B")
