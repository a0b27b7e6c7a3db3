"""The parser of traces in two rounds: a reasoning with masks that asks to see them, then VRT's reasoning and answer.

    <think>A nodule (<ver><obj1> [SEG]</ver>) beside the aorta (<ver><obj2> [SEG]</ver>).</think>

    <action>outline</action>

The tags of reasoning and answer are VRT's; `<action>`, which encloses the name of a tool, is ours. `[SEG]` is as in
`trace_parser`.
"""

import re

from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.tools import read_call
from vitar_jax.episodes.trace_parser import parse_trace, refuse_markup, span, with_seg, write_trace
from vitar_jax.errors import DataError

_NAME = re.compile(r"[\w.:/-]+")


def parse_outline(text: str) -> ParsedTurn:
    """Parses a turn that calls a tool without arguments, in the first `<action>` span, or that answers as a trace does.

    A turn with an action and an answer is an error.
    """
    read = parse_trace(text)
    action = span(text, "action")
    if action is None:
        if span(text, "answer") is None:
            return ParsedTurn(read.thought, None, ActionError("no_action", "The turn has no <action> and no <answer>."))
        return read
    name = text[slice(*action)].strip()
    written = {"name": name, "arguments": {}}
    if span(text, "answer") is not None:
        return ParsedTurn(read.thought, written, ActionError("second_action", "A turn has one action or one answer."))
    if not _NAME.fullmatch(name):
        return ParsedTurn(read.thought, written, ActionError("bad_action", "An action is the name of a tool."))
    return ParsedTurn(read.thought, written, read_call(name, {}))


def write_outline(thought: str, outcome: Answer | ToolCall) -> str:
    """Writes a thought and an outcome as a turn that `parse_outline` reads, with `[SEG]` behind every mention.

    Raises:
      DataError: If a call needs or has arguments, or if a text spells the turn's own markup.
    """
    texts = (thought, outcome.text) if isinstance(outcome, Answer) else (thought,)
    refuse_markup(texts, ("<action>", "</action>"))
    if isinstance(outcome, Answer):
        return write_trace(thought, outcome)
    if not _NAME.fullmatch(outcome.name) or read_call(outcome.name, {}) != outcome:
        raise DataError(f"got {outcome}, expected a call of a tool without boxes, arguments or another image")
    refuse_markup(texts)
    return f"<think>{with_seg(thought)}</think>\n\n<action>{outcome.name}</action>"
