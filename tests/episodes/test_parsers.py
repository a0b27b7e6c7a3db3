"""Reading turns: whatever a model writes is read without an exception, and only what is well formed acts."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.parsers import (
    MAX_BRACKETS,
    PARSERS,
    _published_actions,
    _published_answer,
    parse_as_published,
    parse_json,
    parse_plain,
    write_turn,
)
from vitar_jax.episodes.tools import TOOLS, Number

BOX = (3.0, 4.5, 60.0, 80.0)
MANY = 300_000  # characters that a parser of quadratic time would sit over for hours


def turn(*actions: object, thought: object = "spot") -> str:
    return json.dumps({"thought": thought, "actions": list(actions)})


def action(name: object = "zoom", **arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


def check(parsed: ParsedTurn) -> None:
    """What the rest of an episode relies on."""
    assert parsed.thought is None or isinstance(parsed.thought, str)
    assert parsed.action is None or isinstance(parsed.action, dict)
    json.dumps([parsed.thought, parsed.action], ensure_ascii=False).encode()  # they go into the record and the report
    match parsed.outcome:
        case Answer(text):
            assert text != "" and text.encode()
        case ToolCall(name, boxes, image, arguments):
            assert isinstance(name, str) and type(image) is int
            if name not in TOOLS:
                return
            assert (0 < len(boxes) <= TOOLS[name].max_boxes) if TOOLS[name].max_boxes else boxes == ()
            for box in boxes:
                assert len(box) == 4 and all(type(value) is float and math.isfinite(value) for value in box)
                assert box[0] < box[2] and box[1] < box[3]
            numbers = {k: p for k, p in TOOLS[name].parameters.items() if isinstance(p, Number)}
            assert arguments.keys() == numbers.keys()
            for key, bounds in numbers.items():
                assert type(arguments[key]) is float and bounds.low <= arguments[key] <= bounds.high
        case ActionError(kind, message):
            assert kind and message
        case other:
            raise AssertionError(other)


# Well-formed turns


def test_a_tool_call_is_read() -> None:
    parsed = parse_json(turn(action(box=[list(BOX)]), action("Terminate", answer="A")))
    assert parsed == ParsedTurn("spot", action(box=[list(BOX)]), ToolCall("zoom", (BOX,), 0))


def test_an_image_may_be_named() -> None:
    assert parse_json(turn(action("mark", box=[list(BOX)] * 2, image=3))).outcome == ToolCall("mark", (BOX, BOX), 3)


def test_a_tool_may_take_numbers() -> None:
    outcome = parse_json(turn(action("window", centre=40, width=80.5, box="passed over"))).outcome
    assert outcome == ToolCall("window", (), 0, {"centre": 40.0, "width": 80.5})


def test_an_answer_is_read() -> None:
    assert parse_json(turn(action("Terminate", answer=" B\n"))).outcome == Answer("B")


def test_the_last_of_equal_keys_counts() -> None:
    """As JSON says that most readers do (RFC 8259, section 4)."""
    text = '{"actions": [{"name": "zoom", "name": "Terminate", "arguments": {"answer": "A", "answer": "B"}}]}'
    assert parse_json(text).outcome == Answer("B")


@pytest.mark.slow
@given(st.text(), st.tuples(*[st.floats(0, 1e4)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3]))
def test_what_an_expert_writes_is_read_back(thought: str, box: tuple[float, float, float, float]) -> None:
    parsed = parse_json(write_turn(thought, "zoom", box=[list(box)]))
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
        (r'{"thought": "\ud800", "actions": []}', "bad_json"),  # half a surrogate pair
        ("\ud800", "bad_json"),
        ("[" * MANY, "bad_json"),
        ('{"a":' * MANY, "bad_json"),
        ("9" * MANY, "bad_json"),
        ('{"a": ' + "9" * 5_000 + "}", "bad_json"),
        ('{"thought": "' + "a" * MANY + '"}', "no_action"),
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
        (turn(action()), "box_count"),
        (turn(action(box=[])), "box_count"),
        (turn(action(box=json.dumps([BOX]))), "box_count"),
        (turn(action("mark", box=[list(BOX)] * 17)), "box_count"),
        (turn(action("zoom", box=[list(BOX)] * 2)), "box_count"),
        (turn(action("mark", box=list(BOX))), "box_nesting"),
        (turn(action(box=[[list(BOX)]])), "box_nesting"),
        (turn(action(box=[[1, 2, 3]])), "box_nesting"),
        (turn(action(box=[{"left": 1}])), "box_nesting"),
        (turn(action(box=[[[1], [2], [3], [4]]])), "box_number"),
        (turn(action(box=[[1, 2, 3, "4"]])), "box_number"),
        (turn(action(box=[[0, 0, True, True]])), "box_number"),
        (turn(action(box=[[1, 2, 3, None]])), "box_number"),
        (turn(action(box=[[1, 2, 3, 10**300]])), "box_number"),
        (turn(action(box=[[1, 2, 3, 10**400]])), "box_number"),
        (turn(action(box=[[1, 2, 3, 1e9]])), "box_number"),
        ('{"actions": [{"name": "zoom", "arguments": {"box": [[NaN, 0, 30, 40]]}}]}', "box_number"),
        ('{"actions": [{"name": "zoom", "arguments": {"box": [[-Infinity, 0, 30, 40]]}}]}', "box_number"),
        ('{"actions": [{"name": "zoom", "arguments": {"box": [[0, 0, 30, 1e400]]}}]}', "box_number"),
        (turn(action(box=[[30, 2, 3, 40]])), "box_reversed"),
        (turn(action(box=[[1, 40, 30, 40]])), "box_reversed"),
        (turn(action(box=[list(BOX)], image="0")), "bad_image"),
        (turn(action(box=[list(BOX)], image=True)), "bad_image"),
        (turn(action(box=[list(BOX)], image=0.0)), "bad_image"),
        (turn(action("window", centre=40)), "bad_number"),
        (turn(action("window", centre=40, width=0)), "bad_number"),
        (turn(action("window", centre=256, width=10)), "bad_number"),
        (turn(action("window", centre="40", width=10)), "bad_number"),
        (turn(action("window", centre=math.nan, width=10)), "bad_number"),
        (turn(action("window", centre=40, width=True)), "bad_number"),
    ],
)
def test_a_turn_that_is_no_good_has_an_error(text: str, kind: str) -> None:
    parsed = parse_json(text)
    check(parsed)
    assert isinstance(parsed.outcome, ActionError) and parsed.outcome.kind == kind


def test_a_thought_is_kept_where_the_action_is_no_good() -> None:
    assert parse_json(turn(action(box=[]))).thought == "spot"
    assert parse_json(turn(thought=7)).thought is None


@given(st.text())
def test_a_plain_turn_is_its_answer(text: str) -> None:
    outcome = parse_plain(text).outcome
    assert outcome == Answer(text.strip()) if text.strip() else isinstance(outcome, ActionError)


# As ViTAR's published code reads


def published(*actions: object, before: str = "", after: str = "") -> ParsedTurn:
    return parse_as_published(before + turn(*actions) + after)


def test_the_published_parser_takes_json_out_of_any_text() -> None:
    parsed = published(action("mark_bbox", box=[list(BOX), [0, 0, 1, 1]], image=2), before="So:\n```json\n", after="```]")
    assert parsed.outcome == ToolCall("mark_as_published", (BOX, (0.0, 0.0, 1.0, 1.0)))
    assert parsed.action == action("mark_bbox", box=[list(BOX), [0, 0, 1, 1]])
    assert published(action("Terminate", answer="B"), before="}{").outcome == Answer("B")


@pytest.mark.parametrize("name", ["zoom", "mark", "", 7, "Terminate"])
def test_the_published_parser_marks_by_any_name(name: object) -> None:
    assert published(action(name, box=[list(BOX)])).outcome == ToolCall("mark_as_published", (BOX,))


@pytest.mark.parametrize(
    "text, answer",
    [
        ('{"name": "Terminate", "arguments": {"answer": "B"}}', "B"),
        ('{ "name" :"Terminate",\n"arguments" : {"why": "x", "answer": " B "', " B "),
        ('{"name": "Terminate", "arguments": {"answer": "a } b"', "a } b"),
        ('{"name": "Terminate", "arguments": {"answer": "B\\"', "B\\"),
        ('{"name": "Terminate", "arguments": {"answer": "", "x": {"answer": "B"', "B"),
        ('{"name": "Terminate", "arguments": {"x": {}, "answer": "B"}}', None),
        ('{"arguments": {"answer": "B"}, "name": "Terminate"}', None),
        ('{"name": "Terminate", "arguments": {"ans": "B"}}', None),
        ('{"name": "Terminate", "arguments": {"answer": ""}}', None),
        ('{"name": "Terminate", "arguments": {"answer": 1}}', None),
        ('{"name": "terminate", "arguments": {"answer": "B"}}', None),
        ('{"name": "Terminate", "arguments": {"answer": "B', None),
    ],
)
def test_the_published_parser_finds_an_answer_by_its_keys_in_order(text: str, answer: str | None) -> None:
    outcome = parse_as_published("{[" + text).outcome
    assert outcome == Answer(answer) if answer else isinstance(outcome, ActionError)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, kind",
    [
        ("", "no_action"),
        ('"actions": []', "no_action"),
        ('"actions": [{"name": "mark"}]', "no_action"),
        ('"actions": [{"name": "mark", "arguments": {}}]', "box_count"),
        ('"actions": [{"arguments": {"box": [1, 2, 3, 4]}}]', "box_nesting"),
        ('"actions": [{"arguments": {"box": [[3, 2, 1, 4]]}}]', "box_reversed"),
        ('"actions": [{"arguments": {"box": [[1, 2, 3, 4], [3, 2, 1, 4]]}}]', "box_reversed"),
        ('"actions": [{"arguments": {"box": [[[[1, 2, 3, 4]]]]}}]', "no_action"),  # five brackets
        ('"actions": [{"arguments": {"box": [[1, 2, 3, 1e400]]}}]', "box_number"),
        ('"actions": [{"arguments": {"box": [[1, 2, 3, 4]], "why": "["}}]', "no_action"),  # a bracket in a string counts
        ('"actions":[' * MANY, "no_action"),
        ('"actions"' + " " * MANY, "no_action"),
        ("[" * MANY + "]" * MANY, "no_action"),
        ('"actions":[' + "{" * MANY + "]", "no_action"),
        ('{"name":"Terminate","arguments":{' * MANY, "no_action"),
        ('{"name":"Terminate","arguments":{' + '"answer":"' * MANY, None),
        ('"answer":' * MANY, "no_action"),
        ("{" + " " * MANY + '"name"', "no_action"),
    ],
)
def test_the_published_parser_tells_what_it_could_not_read(text: str, kind: str | None) -> None:
    parsed = parse_as_published(text)
    check(parsed)
    assert kind is None or (isinstance(parsed.outcome, ActionError) and parsed.outcome.kind == kind)


def nested(depth: int) -> str:
    """A pattern of brackets in brackets, up to `depth` of them."""
    return rf"\[(?:[^\[\]]|{nested(depth - 1)})*\]" if depth > 1 else r"\[[^\[\]]*\]"


pieces = st.sampled_from(['"actions"', ":", " ", "[", "]", "[", "]", "{}", '"', "1"])


@pytest.mark.slow
@given(st.lists(pieces, max_size=30).map("".join))
@settings(max_examples=500)
@example('"actions": [[ "actions" : [{}]')
def test_the_first_list_of_actions_is_the_one_that_a_pattern_finds(text: str) -> None:
    """Beside a regular expression, which says it shortly and takes longer."""
    found = re.search(rf'"actions"\s*:\s*({nested(4)})', text)
    assert _published_actions(text) == (found[1] if found else "")


opening = '{"name": "Terminate", "arguments": {'
pieces_of_answers = st.sampled_from([opening, opening, '"answer": "', '"answer"', ":", '"', "}", "{", "B", " "])


@given(st.lists(pieces_of_answers, max_size=20).map("".join))
@settings(max_examples=500)
@example(opening + '}"answer": "A"' + opening + '"answer": "}B"')
def test_the_answer_is_that_of_the_first_terminate_that_has_one(text: str) -> None:
    """Beside a search from every Terminate, which says it shortly and takes longer."""
    answers = []
    for start in (match.end() for match in re.finditer(re.escape(opening), text)):
        until_brace = text[start:].split("}")[0]
        found = re.compile(r'"answer"\s*:\s*"([^"]+)"').search(text, start)
        if found and found.start() < start + len(until_brace):
            answers.append(found[1])
    assert _published_answer(text) == (answers[0] if answers else None)


# Anything at all

numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**18), 1e308, 5e-324, -0.0])
scalars = st.none() | st.booleans() | numbers | st.text() | st.just("\ud800")
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
boxes = st.lists(st.lists(numbers, min_size=3, max_size=5) | scalars, max_size=18)
arguments = st.fixed_dictionaries(
    {}, optional={"box": boxes | values, "answer": values, "image": values, "centre": values, "width": values}
)
actions = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from([*TOOLS, "Terminate", ""]) | values, "arguments": arguments | values}
)
turns = st.fixed_dictionaries({}, optional={"thought": values, "actions": st.lists(actions | values, max_size=3) | values})
every_parser = pytest.mark.parametrize("name", list(PARSERS))


@every_parser
@given(text=st.text())
@example('"\\ud800"')
@example("\x00")
@example("{" + '"a":[' * MAX_BRACKETS)
def test_any_text_is_read(name: str, text: str) -> None:
    check(PARSERS[name].read(text))


@every_parser
@given(data=st.binary(), errors=st.sampled_from(["replace", "ignore", "backslashreplace"]))
def test_any_bytes_are_read(name: str, data: bytes, errors: str) -> None:
    check(PARSERS[name].read(data.decode(errors=errors)))


# A document takes longer to draw than to read, so every parser reads the same one.


def check_json(value: Any) -> None:
    for parser in PARSERS.values():
        check(parser.read(json.dumps(value)))


def check_damaged_json(text: str, data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        width = data.draw(st.integers(0, 3))
        piece = data.draw(st.sampled_from(["", "[", "]", "{", "}", '"', "\\u", ",", "9" * 40, "e99", "-", "NaN", "\n"]))
        text = text[:place] + piece + text[place + width :]
    for parser in PARSERS.values():
        check(parser.read(text))


few, many = settings(max_examples=40), settings(max_examples=1000)
test_any_json_is_read = few(given(value=turns)(check_json))
test_any_damaged_json_is_read = few(given(text=turns.map(json.dumps), data=st.data())(check_damaged_json))
test_much_json_is_read = pytest.mark.sweep(many(given(value=turns)(check_json)))
test_much_damaged_json_is_read = pytest.mark.sweep(many(given(text=turns.map(json.dumps), data=st.data())(check_damaged_json)))
