"""Actions that a turn can request, and errors in turns."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

# Errors of a call of one of the tools: its arguments, or what the tool made of them.
CallErrorKind = Literal[
    "bad_image",  # not an index of an image
    "bad_number",  # an argument that is not a number, or is out of bounds
    "bad_text",  # an argument that is not a text, is too long, or is not one of the texts allowed
    "box_count",  # not a list of boxes, no boxes, or more than the tool accepts
    "box_nesting",  # a box that is not a list of four
    "box_number",  # a coordinate that is not a finite number, or is huge
    "box_reversed",  # right <= left, or lower <= upper
    "box_outside",
    "box_too_small",
    "no_mask",  # a tool that shows masks, in a turn without any pixel of a mask
    "no_values",  # a tool that reads CT values or the pixel spacing of an image without readable ones
    "bad_shape",  # the tool's image cannot be shown
]
ErrorKind = Literal[
    "bad_json",  # the turn is not one JSON object
    "no_action",  # the turn has no list of actions
    "bad_action",  # an action without a name or arguments
    "bad_answer",  # Terminate without an answer
    "bad_tags",  # not the elements of the format, in their order, and nothing else
    "second_action",  # more actions or answers than the format or the protocol has
    "wrote_feedback",  # a turn that writes an observation itself
    "too_early",  # an answer before the last turn, and the protocol requires all turns
    "too_long",  # cut off by the turn's budget
    "unknown_tool",
    CallErrorKind,
]


@dataclasses.dataclass(frozen=True)
class ActionError:
    """An error in a turn, with a message for the model. Metrics count errors by `kind`."""

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
      image: Index of the image to act on; 0 is the first image of the sample.
      arguments: The tool's other arguments, by name.
    """

    name: str
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    image: int = 0
    arguments: Mapping[str, float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ParsedTurn:
    """A parsed turn: its outcome, and its thought and action if they could be read.

    Attributes:
      further: Outcomes of the actions after the first one, which protocols with several calls per turn play too. They do not
        count when turns are compared.
    """

    thought: str | None
    action: dict[str, Any] | None
    outcome: Answer | ToolCall | ActionError
    further: tuple[Answer | ToolCall | ActionError, ...] = dataclasses.field(default=(), compare=False)
