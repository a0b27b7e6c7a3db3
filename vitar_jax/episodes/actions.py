"""What a turn can ask for."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

ErrorKind = Literal[
    "bad_json",  # not the one JSON object that a turn is
    "no_action",  # no list of actions
    "bad_action",  # an action without a name or arguments
    "bad_answer",  # Terminate without an answer
    "too_early",  # an answer before the last turn, where the protocol wants all its looks
    "too_long",  # cut off by the turn's budget
    "unknown_tool",
    "bad_image",  # no index of an image
    "bad_number",  # an argument that is no number, or out of its bounds
    "bad_text",  # an argument that is no text, or too long
    "box_count",  # no list of boxes, none, or more than the tool takes
    "box_nesting",  # a box that is no list of four
    "box_number",  # a coordinate that is no finite number, or huge
    "box_reversed",  # right <= left, or lower <= upper
    "box_outside",
    "box_too_small",
    "bad_shape",  # what the tool returned cannot be shown
]


@dataclasses.dataclass(frozen=True)
class ActionError:
    """What was wrong with a turn, in words the model can read. `kind` is for counting."""

    kind: ErrorKind
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
      arguments: the tool's other arguments, by name.
    """

    name: str
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    image: int = 0
    arguments: Mapping[str, float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """A turn as read: `thought` and `action` as far as they could be, and the outcome."""

    thought: str | None
    action: dict[str, Any] | None
    outcome: Answer | ToolCall | ActionError
