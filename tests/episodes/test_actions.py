"""Reading turns: whatever a model writes is read without an exception, and only what is well formed acts."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitar_jax.episodes.actions import (
    MAX_BOXES,
    MAX_BRACKETS,
    ActionError,
    Answer,
    ParsedTurn,
    ToolCall,
    parse_turn,
)
from vitar_jax.episodes.protocols import PROTOCOLS, write_turn

BOX = (3.0, 4.5, 60.0, 80.0)


def turn(*actions: object, thought: object = "spot") -> str:
    return json.dumps({"thought": thought, "actions": list(actions)})


def action(name: object = "zoom", **arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


def check(parsed: ParsedTurn) -> None:
    """What the rest of an episode relies on."""
    assert parsed.thought is None or isinstance(parsed.thought, str)
    assert parsed.action is None or isinstance(parsed.action, dict)
    json.dumps(parsed.action)  # it goes into the record
    match parsed.outcome:
        case Answer(text):
            assert isinstance(text, str) and text == text.strip() != ""
        case ToolCall(name, boxes, image):
            assert isinstance(name, str) and type(image) is int
            assert 1 <= len(boxes) <= MAX_BOXES
            for box in boxes:
                assert len(box) == 4 and all(type(value) is float and math.isfinite(value) for value in box)
                assert box[0] < box[2] and box[1] < box[3]
        case ActionError(kind, message):
            assert kind and message
        case other:
            raise AssertionError(other)


# Well-formed turns


def test_a_tool_call_is_read() -> None:
    parsed = parse_turn(turn(action(box=[list(BOX)]), action("Terminate", answer="A")))
    assert parsed == ParsedTurn("spot", action(box=[list(BOX)]), ToolCall("zoom", (BOX,), 0))


def test_an_image_may_be_named() -> None:
    assert parse_turn(turn(action("mark", box=[list(BOX)] * 2, image=3))).outcome == ToolCall("mark", (BOX, BOX), 3)


def test_an_answer_is_read() -> None:
    assert parse_turn(turn(action("Terminate", answer=" B\n"))).outcome == Answer("B")


@given(st.text(), st.tuples(*[st.floats(0, 1e4)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3]))
def test_what_an_expert_writes_is_read_back(thought: str, box: tuple[float, float, float, float]) -> None:
    parsed = parse_turn(write_turn(thought, "zoom", box=[list(box)]))
    assert (parsed.thought, parsed.outcome) == (thought, ToolCall("zoom", (box,)))


# Errors


@pytest.mark.parametrize(
    "text, kind",
    [
        ("", "bad_json"),
        ("B", "bad_json"),
        ("[]", "bad_json"),
        ("null", "bad_json"),
        (turn(action(box=[list(BOX)])) + " and more", "bad_json"),
        ("```json\n" + turn(action(box=[list(BOX)])) + "\n```", "bad_json"),
        (turn(action(box=[list(BOX)]))[:-1], "bad_json"),
        ("{}", "no_action"),
        (turn(), "no_action"),
        ('{"actions": {"name": "zoom"}}', "no_action"),
        (turn("zoom"), "no_action"),
        (turn({"name": "zoom"}), "bad_action"),
        (turn(action(7, box=[list(BOX)])), "bad_action"),
        (turn({"name": "Terminate", "arguments": "A"}), "bad_action"),
        (turn(action("Terminate")), "bad_answer"),
        (turn(action("Terminate", answer="  ")), "bad_answer"),
        (turn(action("Terminate", answer=1)), "bad_answer"),
        (turn(action()), "bad_box"),
        (turn(action(box=[])), "bad_box"),
        (turn(action(box=list(BOX))), "bad_box"),
        (turn(action(box=[[1, 2, 3]])), "bad_box"),
        (turn(action(box=[[1, 2, 3, "4"]])), "bad_box"),
        (turn(action(box=[[0, 0, True, True]])), "bad_box"),
        (turn(action(box=[[1, 2, 3, None]])), "bad_box"),
        (turn(action(box=[[30, 2, 3, 40]])), "bad_box"),
        (turn(action(box=[[1, 40, 30, 40]])), "bad_box"),
        (turn(action(box=[[1, 2, 3, 10**300]])), "bad_box"),
        ('{"actions": [{"name": "zoom", "arguments": {"box": [[NaN, 0, 30, 40]]}}]}', "bad_box"),
        ('{"actions": [{"name": "zoom", "arguments": {"box": [[-Infinity, 0, 30, 1e999]]}}]}', "bad_box"),
        (turn(action(box=[list(BOX)] * (MAX_BOXES + 1))), "bad_box"),
        (turn(action(box=[list(BOX)], image="0")), "bad_image"),
        (turn(action(box=[list(BOX)], image=True)), "bad_image"),
        (turn(action(box=[list(BOX)], image=0.0)), "bad_image"),
        ("[" * 100_000, "bad_json"),
        ('{"a":' * 100_000, "bad_json"),
        ("9" * 100_000, "bad_json"),
        ('{"a": ' + "9" * 5_000 + "}", "bad_json"),
    ],
)
def test_a_turn_that_is_no_good_has_an_error(text: str, kind: str) -> None:
    parsed = parse_turn(text)
    check(parsed)
    assert isinstance(parsed.outcome, ActionError) and parsed.outcome.kind == kind


def test_a_thought_is_kept_where_the_action_is_no_good() -> None:
    assert parse_turn(turn(action(box=[]))).thought == "spot"
    assert parse_turn(turn(thought=7)).thought is None


# Anything at all

numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**18), 1e308, 5e-324, -0.0])
scalars = st.none() | st.booleans() | numbers | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
boxes = st.lists(st.lists(numbers, min_size=3, max_size=5) | scalars, max_size=MAX_BOXES + 2)
arguments = st.fixed_dictionaries({}, optional={"box": boxes | values, "answer": values, "image": values, "text": values})
actions = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["zoom", "mark", "Terminate", ""]) | values,
        "arguments": arguments | values,
    },
)
turns = st.fixed_dictionaries({}, optional={"thought": values, "actions": st.lists(actions | values, max_size=3) | values})


@given(st.text())
@example('"\\ud800"')
@example("\x00")
@example("{" + '"a":[' * MAX_BRACKETS)
def test_any_text_is_read(text: str) -> None:
    check(parse_turn(text))


@given(turns)
@settings(max_examples=300)
def test_any_json_is_read(value: Any) -> None:
    check(parse_turn(json.dumps(value)))


@given(turns.map(json.dumps), st.data())
@settings(max_examples=300)
def test_any_damaged_json_is_read(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        width = data.draw(st.integers(0, 3))
        piece = data.draw(st.sampled_from(["", "[", "]", "{", "}", '"', "\\u", ",", "9" * 40, "e99", "-", "NaN", "\n"]))
        text = text[:place] + piece + text[place + width :]
    check(parse_turn(text))


@given(st.text())
def test_every_protocol_reads_any_text(text: str) -> None:
    for protocol in PROTOCOLS.values():
        check(protocol.read(text))


@given(st.text())
def test_a_plain_protocol_takes_the_text_as_its_answer(text: str) -> None:
    outcome = PROTOCOLS["plain"].read(text).outcome
    assert outcome == Answer(text.strip()) if text.strip() else isinstance(outcome, ActionError)
