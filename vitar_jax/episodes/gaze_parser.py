"""Reads and writes MedEyes' turns: reasoning in tags, then one gaze or the answer."""

import json
import re
from typing import Any

from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.json_text import load_json, short_number
from vitar_jax.episodes.tools import read_call
from vitar_jax.errors import DataError

_TAG = re.compile(r"</?(?:reasoning|action|feedback|answer)>")
_ESCAPED = re.compile(r"&((?:amp;)*)lt;")
_GAZE = ["<reasoning>", "</reasoning>", "<action>", "</action>"]
_ANSWER = ["<reasoning>", "</reasoning>", "<answer>", "</answer>"]


def parse_gaze(text: str) -> ParsedTurn:
    """Parses a turn of one of two forms, with white space anywhere between the elements:

        <reasoning>...</reasoning><action>{"name": "Gaze", "coordinate": [10, 20, 40, 50]}</action>
        <reasoning>...</reasoning><answer>B</answer>

    No text stands outside of the elements, and no tag inside of them; `&lt;answer>` is text that spells a tag. A turn that
    contains a tag of `<feedback>`, which the environment writes, or a second action or answer is an error. The coordinate is
    (x1, y1, x2, y2); the tool acts on the first image. The parsed action is {"name": ..., "arguments": {"coordinate": ...}}.
    """
    tags = _TAG.findall(text)
    parts = _TAG.split(text)  # text before the first tag, between tags, and after the last tag
    thought = _unescape(parts[1]) if tags[:2] == _GAZE[:2] and not parts[0].strip() else None
    action, outcome = _read(tags, parts)
    return ParsedTurn(thought, action, outcome)


def _read(tags: list[str], parts: list[str]) -> tuple[dict[str, Any] | None, Answer | ToolCall | ActionError]:
    """Returns the action as the model wrote it, or None, and the outcome."""
    if "<feedback>" in tags or "</feedback>" in tags:
        return None, ActionError("wrote_feedback", "A turn does not write feedback.")
    if tags.count("<action>") + tags.count("<answer>") > 1:
        return None, ActionError("second_action", "A turn has one action or one answer.")
    if tags not in (_GAZE, _ANSWER) or any(part.strip() for part in parts[::2]):
        return None, ActionError("bad_tags", "A turn is <reasoning>...</reasoning> and then <action> or <answer>.")
    if tags == _ANSWER:
        answer = _unescape(parts[3].strip())
        if not answer:
            return None, ActionError("bad_answer", "The answer is empty.")
        return {"name": "Terminate", "arguments": {"answer": answer}}, Answer(answer)
    written = load_json(parts[3])
    if not isinstance(written, dict):
        return None, ActionError("bad_json", "The action is not one JSON object.")
    name = written.get("name")
    arguments = {key: value for key, value in written.items() if key != "name"}
    action = {"name": name, "arguments": arguments}
    if not isinstance(name, str) or "coordinate" not in arguments:
        return action, ActionError("bad_action", "An action needs a name and a coordinate.")
    return action, read_call(name, {"box": [arguments["coordinate"]]})


def write_gaze(thought: str, outcome: Answer | ToolCall) -> str:
    """Writes a thought and an outcome as a turn that `parse_gaze` reads. A tag that a text spells stays text.

    Raises:
      DataError: If a call does not have exactly one box on the first image, and nothing else.
    """
    if isinstance(outcome, Answer):
        kind, content = "answer", _escape(outcome.text)
    elif len(outcome.boxes) != 1 or outcome.image or outcome.arguments:
        raise DataError(f"a gaze: got {outcome}, expected one box on image 0 and no other argument")
    else:
        coordinate = [short_number(edge) for edge in outcome.boxes[0]]
        written = json.dumps({"name": outcome.name, "coordinate": coordinate})
        kind, content = "action", written.replace("<", r"\u003c")
    return f"<reasoning>{_escape(thought)}</reasoning><{kind}>{content}</{kind}>"


def _escape(text: str) -> str:
    """Writes the tags in a text as `&lt;...>`, and `&lt;`, `&amp;lt;`, ... with one more `amp;`."""
    return _TAG.sub(lambda tag: f"&lt;{tag[0][1:]}", _ESCAPED.sub(r"&amp;\1lt;", text))


def _unescape(text: str) -> str:
    """Reads what `_escape` wrote."""
    return _ESCAPED.sub(lambda found: f"&{found[1].removeprefix('amp;')}lt;" if found[1] else "<", text)
