"""Parsers by name: each reads the text of a turn into its outcome, and writes an outcome as text.

A reader never raises and takes linear time: it scans a text from left to right a fixed number of times, and never passes a text
with more than `MAX_BRACKETS` opening brackets to `json`.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.gaze_parser import parse_gaze, write_gaze
from vitar_jax.episodes.json_text import MAX_BRACKETS, count_brackets, load_json, short_number
from vitar_jax.episodes.outline_parser import parse_outline, write_outline
from vitar_jax.episodes.tools import read_call
from vitar_jax.episodes.trace_parser import parse_trace, write_trace
from vitar_jax.errors import DataError
from vitar_jax.runtime.registry import Registry


@dataclasses.dataclass(frozen=True)
class Parser:
    """A format of turns.

    Attributes:
      read: Parses a text as a turn. Never raises.
      write: Writes a thought and an outcome as a text that `read` reads as that outcome. Raises DataError for an outcome that
        the format cannot express. None if the format has no writer, so it cannot be demonstrated.
      thoughts: Whether a turn has a thought. If not, a sample's answer alone is a complete demonstration.
    """

    read: Callable[[str], ParsedTurn]
    write: Callable[[str, Answer | ToolCall], str] | None = None
    thoughts: bool = True


PARSERS: Registry[Parser] = Registry("parser")


def parse_json(text: str) -> ParsedTurn:
    """Parses ViTAR's JSON turn. The text must contain nothing else.

        {"thought": "...", "actions": [{"name": "zoom", "arguments": {"box": [[10, 20, 40, 50]]}}]}
        {"thought": "...", "actions": [{"name": "Terminate", "arguments": {"answer": "B"}}]}

    The outcome is that of the first action, and `further` holds those of the others. Uses the last of duplicate keys. An
    optional argument `image` is the index of an image.
    """
    turn = load_json(text)
    if not isinstance(turn, dict):
        return ParsedTurn(None, None, ActionError("bad_json", "The turn is not one JSON object."))
    thought = turn.get("thought")
    thought = thought if isinstance(thought, str) else None
    actions = turn.get("actions")
    action = actions[0] if isinstance(actions, list) and actions else None
    if not isinstance(actions, list) or not isinstance(action, dict):
        return ParsedTurn(thought, None, ActionError("no_action", "The turn has no list of actions."))
    return ParsedTurn(thought, action, _read_action(action), tuple(map(_read_action, actions[1:])))


def _read_action(action: Any) -> Answer | ToolCall | ActionError:
    name, arguments = (action.get("name"), action.get("arguments")) if isinstance(action, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ActionError("bad_action", "An action needs a name and arguments.")
    if name != "Terminate":
        return read_call(name, arguments)
    answer = arguments.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        return ActionError("bad_answer", "Terminate needs an answer.")
    return Answer(answer.strip())


def write_calls(thought: str, *calls: tuple[str, Mapping[str, object]]) -> str:
    """Writes a turn of several actions, given by name and arguments, in ViTAR's JSON. Does not check the arguments."""
    return json.dumps({"thought": thought, "actions": [{"name": name, "arguments": arguments} for name, arguments in calls]})


def write_turn(thought: str, name: str, **arguments: object) -> str:
    """Writes a turn in ViTAR's JSON. Does not check its arguments."""
    return write_calls(thought, (name, arguments))


def write_json(thought: str, outcome: Answer | ToolCall) -> str:
    """Writes a thought and an outcome as a turn that `parse_json` reads."""
    name, arguments = _named(outcome)
    text = write_turn(thought, name, **arguments)
    if count_brackets(text) > MAX_BRACKETS:  # brackets within strings can be escaped
        text = _STRING.sub(lambda string: string[0].replace("[", r"\u005b").replace("{", r"\u007b"), text)
    return text


def _named(outcome: Answer | ToolCall) -> tuple[str, dict[str, Any]]:
    """Returns the name and the arguments of an outcome."""
    if isinstance(outcome, Answer):
        return "Terminate", {"answer": outcome.text}
    boxes = [[short_number(edge) for edge in box] for box in outcome.boxes]
    others = {key: short_number(value) if isinstance(value, float) else value for key, value in outcome.arguments.items()}
    return outcome.name, ({"box": boxes} if boxes else {}) | ({"image": outcome.image} if outcome.image else {}) | others


PARSERS["json"] = Parser(parse_json, write_json)


def parse_plain(text: str) -> ParsedTurn:
    """Parses the whole turn as the answer."""
    answer = text.strip()
    return ParsedTurn(None, None, Answer(answer) if answer else ActionError("bad_answer", "The answer is empty."))


def write_plain(thought: str, outcome: Answer | ToolCall) -> str:
    """Writes an answer as a turn that `parse_plain` reads: the answer alone.

    Raises:
      DataError: If the outcome is a tool call.
    """
    if not isinstance(outcome, Answer):
        raise DataError(f"a plain turn: got a call of {outcome.name}, expected an answer")
    return outcome.text


PARSERS["plain"] = Parser(parse_plain, write_plain, thoughts=False)


def _spaced(*signs: str) -> str:
    """Returns a pattern that matches the tokens with any white space between them."""
    return r"\s*".join(map(re.escape, signs))


_TERMINATE = _spaced("{", '"name"', ":", '"Terminate"', ",", '"arguments"', ":", "{")
_ANSWER = _spaced('"answer"', ":", '"')
_IN_TERMINATE = re.compile(rf'(?P<opening>{_TERMINATE})|}}|{_ANSWER}(?=(?P<answer>[^"]+)")')
_ACTIONS = _spaced('"actions"', ":", "[")
_BRACKET = re.compile(rf"(?P<actions>{_ACTIONS})|\[|\]")
_PUBLISHED_DEPTH = 4
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_as_published(text: str) -> ParsedTurn:
    """Parses a turn as ViTAR's published code does. Differences from `json`:

    - The JSON may be surrounded by any text. The thought is ignored.
    - An answer anywhere in the text takes precedence over actions. It is the raw, non-empty text between its quotes, without
      unescaping. In its object, the name must precede the arguments.
    - Reads the first `"actions": [...]` whose brackets are nested at most four deep. Brackets in strings count too.
    - An action of any name, or without one, marks its boxes on the first image. So does "Terminate" with a box but no answer.

    Unlike the published code, it returns an error for a call without boxes or with more than a thousand boxes.
    """
    if answer := _published_answer(text):
        action = {"name": "Terminate", "arguments": {"answer": answer}}
        return ParsedTurn(None, action, Answer(answer))
    actions = load_json(_published_actions(text))
    action = actions[0] if isinstance(actions, list) and actions else None
    arguments = action.get("arguments") if isinstance(action, dict) else None
    if not isinstance(action, dict) or not isinstance(arguments, dict):
        return ParsedTurn(None, None, ActionError("no_action", "The turn has no list of actions."))
    only_box = {"box": arguments.get("box")}
    return ParsedTurn(None, {"name": action.get("name"), "arguments": only_box}, read_call("mark_as_published", only_box))


def _published_answer(text: str) -> str | None:
    """Returns the first answer inside the arguments of a Terminate, before any closing brace."""
    inside = False
    for found in _IN_TERMINATE.finditer(text):
        if found["answer"] is None:
            inside = found["opening"] is not None
        elif inside:
            return found["answer"]
    return None


def _published_actions(text: str) -> str:
    """Returns the text of the first list of actions, or an empty string if there is none."""
    opened: list[list[int]] = []  # per open bracket: position (0 unless it opens a list of actions), nesting depth inside
    lists: list[tuple[int, int]] = []
    for bracket in _BRACKET.finditer(text):
        if bracket[0] != "]":
            opened.append([bracket.end() - 1 if bracket["actions"] else 0, 0])
        elif opened:
            start, nested = opened.pop()
            if opened:
                opened[-1][1] = max(opened[-1][1], nested + 1)
            if start and nested < _PUBLISHED_DEPTH:
                lists.append((start, bracket.end()))
    return text[slice(*min(lists))] if lists else ""


def write_as_published(thought: str, outcome: Answer | ToolCall) -> str:
    """Writes a thought and an outcome as a turn that `parse_as_published` reads.

    Raises:
      DataError: If an answer contains quotes, which `parse_as_published` does not unescape.
    """
    if not isinstance(outcome, Answer):
        return write_json(thought, outcome)
    if '"' in outcome.text:
        raise DataError(f"answer {outcome.text!r}: the published format cannot express an answer that contains quotes")
    opening, closing = write_json(thought, Answer("")).rsplit('""', 1)
    return f'{opening}"{outcome.text}"{closing}'


PARSERS["vitar_reference"] = Parser(parse_as_published, write_as_published)
PARSERS["vrt"] = Parser(parse_trace, write_trace)
PARSERS["outline"] = Parser(parse_outline, write_outline)
PARSERS["medeyes"] = Parser(parse_gaze, write_gaze)
