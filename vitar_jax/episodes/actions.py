"""From what the model wrote to what it asked for. Parsing never raises."""

import dataclasses
import json
import math
from typing import Any

MAX_BOXES = 16
MAX_BRACKETS = 100  # a deep nest of them would overflow the stack of whoever reads or writes it


@dataclasses.dataclass(frozen=True)
class ActionError:
    """What was wrong with a turn, in words the model can read."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """`Terminate`: the episode's answer."""

    text: str


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A tool to run on an image.

    Attributes:
      boxes: (x1, y1, x2, y2) in the protocol's frame; finite, with x1 < x2 and y1 < y2.
      image: index of the image to act on; 0 is the first image of the sample.
    """

    name: str
    boxes: tuple[tuple[float, float, float, float], ...]
    image: int = 0


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """A turn as read: `thought` and `action` as far as they could be, and the outcome."""

    thought: str | None
    action: dict[str, Any] | None
    outcome: Answer | ToolCall | ActionError


def parse_turn(text: str) -> ParsedTurn:
    """Reads ViTAR's JSON turn.

        {"thought": "...", "actions": [{"name": "zoom", "arguments": {"box": [[10, 20, 40, 50]]}}]}
        {"thought": "...", "actions": [{"name": "Terminate", "arguments": {"answer": "B"}}]}

    Only the first action counts. An optional argument `image` names the image by index.
    """
    turn = None
    if text.count("[") + text.count("{") <= MAX_BRACKETS:
        try:
            turn = json.loads(text)
        except ValueError:
            pass
    if not isinstance(turn, dict):
        return ParsedTurn(None, None, ActionError("bad_json", "The turn is not one JSON object."))
    thought = turn.get("thought")
    thought = thought if isinstance(thought, str) else None
    actions = turn.get("actions")
    action = actions[0] if isinstance(actions, list) and actions else None
    if not isinstance(action, dict):
        return ParsedTurn(thought, None, ActionError("no_action", "The turn has no list of actions."))
    return ParsedTurn(thought, action, _read_action(action))


def _read_action(action: dict[str, Any]) -> Answer | ToolCall | ActionError:
    name, arguments = action.get("name"), action.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return ActionError("bad_action", "An action needs a name and arguments.")
    if name == "Terminate":
        answer = arguments.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            return ActionError("bad_answer", "Terminate needs an answer.")
        return Answer(answer.strip())
    boxes = _read_boxes(arguments.get("box"))
    if isinstance(boxes, ActionError):
        return boxes
    image = arguments.get("image", 0)
    if isinstance(image, bool) or not isinstance(image, int):
        return ActionError("bad_image", "The image is named by a whole number.")
    return ToolCall(name, boxes, image)


def _read_boxes(value: Any) -> tuple[tuple[float, float, float, float], ...] | ActionError:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_BOXES:
        return ActionError("bad_box", f"box is a list of 1 to {MAX_BOXES} boxes.")
    boxes = []
    for box in value:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(v) for v in box):
            return ActionError("bad_box", "A box is four numbers: left, upper, right, lower.")
        x1, y1, x2, y2 = (float(v) for v in box)
        if not (x1 < x2 and y1 < y2):
            return ActionError("bad_box", "A box has right > left and lower > upper.")
        boxes.append((x1, y1, x2, y2))
    return tuple(boxes)


def _is_coordinate(value: Any) -> bool:
    # Compared before any conversion: float() of a huge integer overflows.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9 and math.isfinite(value)
