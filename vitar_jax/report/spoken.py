"""Reads the text of a turn that another trainer's model wrote: its thought, tool calls, boxes and answer.

Without a protocol, reads the forms that Qwen's chat template and most recipes share: `<think>`, `<tool_call>` with JSON, tool
calls beside the text as in chat completions, `<answer>`, and `\\boxed{}`.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.answers import tagged
from vitar_jax.episodes.json_text import load_json
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.runtime.replies import without_reasoning

Edges = tuple[float, float, float, float]

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_BOX_KEYS = ("bbox_2d", "bbox", "bboxes", "box", "boxes", "coordinate", "region")
_IMAGE_KEYS = ("image", "img_idx", "image_index")  # indices from 0
_MOST_BOXES = 1000


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A turn as read.

    Attributes:
      action: The tool call, or {"calls": [...]} of several; None without any.
      boxes: Boxes of all calls, in the frame that the model writes.
      on: Index of the image that the first call names, or 0.
      answer: The answer that the turn states. Without a protocol, a turn without a call and without marks answers with its
        whole text.
    """

    thought: str | None
    action: dict[str, Any] | None
    boxes: tuple[Edges, ...]
    on: int
    answer: str | None


def read_turn(text: str, thought: str, calls: Sequence[Any], protocol: Protocol | None) -> Spoken:
    """Reads a turn. Never raises.

    Args:
      thought: Reasoning that the record keeps beside the text, or an empty string.
      calls: Tool calls that the record keeps beside the text, in the form of chat completions.
      protocol: If given, its parser reads the text.
    """
    if protocol is not None:
        parsed = protocol.read(text)
        outcome = parsed.outcome
        boxes = outcome.boxes if isinstance(outcome, ToolCall) else ()
        on = max(outcome.image, 0) if isinstance(outcome, ToolCall) else 0
        return Spoken(parsed.thought, parsed.action, boxes, on, outcome.text if isinstance(outcome, Answer) else None)
    said = [*filter(None, map(_beside, calls)), *filter(None, map(_call, _CALL.findall(text)))]
    arguments = [one["arguments"] for one in said if isinstance(one["arguments"], dict)]
    return Spoken(
        thought=thought or "\n".join(one.strip() for one in _THOUGHT.findall(text)) or None,
        action=None if not said else said[0] if len(said) == 1 else {"calls": said},
        boxes=tuple(box for one in arguments for key in _BOX_KEYS for box in _boxes(one.get(key)))[:_MOST_BOXES],
        on=next((one[key] for one in arguments for key in _IMAGE_KEYS if _is_index(one.get(key))), 0),
        answer=_answer(text, bool(said)),
    )


def _answer(text: str, called: bool) -> str | None:
    if (answer := tagged(text)) is not None:
        return answer
    if boxed := _BOXED.findall(text):
        return boxed[-1].strip()
    return None if called else without_reasoning(text).strip() or None


def _call(text: str) -> dict[str, Any] | None:
    """Returns the call in a `<tool_call>`: {"name": ..., "arguments": ...}; None if it is no JSON."""
    value = load_json(text.strip())
    return _named(value) if isinstance(value, dict) else None


def _beside(value: Any) -> dict[str, Any] | None:
    """Returns a call in the form of chat completions, whose arguments may be text."""
    inner = value.get("function") if isinstance(value, Mapping) else None
    return _named(inner if isinstance(inner, Mapping) else value) if isinstance(value, Mapping) else None


def _named(value: Mapping[str, Any]) -> dict[str, Any]:
    arguments = value.get("arguments")
    if isinstance(arguments, str) and isinstance(read := load_json(arguments), dict):
        arguments = read
    return {"name": value.get("name"), "arguments": {} if arguments is None else arguments}


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000


def _boxes(value: Any) -> Iterator[Edges]:
    """Yields the boxes in an argument: four numbers, or a list of them. Ignores empty and infinite boxes."""
    if not isinstance(value, list):
        return
    if len(value) == 4 and all(map(_is_number, value)):
        x1, y1, x2, y2 = map(float, value)
        if x1 < x2 and y1 < y2:
            yield x1, y1, x2, y2
        return
    for one in value:
        if isinstance(one, list) and len(one) == 4:
            yield from _boxes(one)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def plain_chat(text: str, first: str) -> list[tuple[str, str]]:
    """Splits a chat that was decoded without its special tokens, or with them, into (role, text) pairs.

    Without them, a message begins with a line that is only its role. A model that writes such a line splits its own turn.

    Args:
      first: Role of the text before the first such line.
    """
    pieces = _MARKED.split(text) if "<|im_start|>" in text else _BARE.split(text)
    roles = [first, *(role.strip() for role in pieces[1::2])]
    messages = [(role, said.replace("<|im_end|>", "").strip("\n")) for role, said in zip(roles, pieces[::2], strict=True)]
    return [(role, said) for number, (role, said) in enumerate(messages) if said.strip() or (number and role == "assistant")]


_MARKED = re.compile(r"<\|im_start\|>(\w+)\n?")
_BARE = re.compile(r"(?:^|(?<=\n))(system|user|assistant|tool)(?:\n|\Z)")
_IMAGES = re.compile(r"(?:<\|vision_start\|>)?(?:<\|(?:image_pad|imgpad)\|>)+(?:<\|vision_end\|>)?|<image>")


def split_images(text: str) -> Iterable[str | None]:
    """Yields the parts of a text: None in place of each image that its placeholder tokens, or `<image>`, stand for."""
    place = 0
    for found in _IMAGES.finditer(text):
        yield text[place : found.start()]
        yield None
        place = found.end()
    yield text[place:]
