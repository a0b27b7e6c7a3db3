"""The parser of VRT's turns: a reasoning and an answer, in which `[SEG]` follows every mention of an object.

    <think>A nodule (<ver><obj1> [SEG]</ver>) beside the aorta (<ver><obj2> [SEG]</ver>).</think>

    <answer>The nodule (<vea><obj1> [SEG]</vea>).</answer>

The form is that of R-Sa2VA (Visual Reasoning Tracer, arXiv:2512.05091). A thought and an answer are read and written without
`[SEG]`, which is a token: a text that spells it is not one, so it cannot be written.
"""

from collections.abc import Sequence

from vitar_jax.episodes.actions import ActionError, Answer, ParsedTurn, ToolCall
from vitar_jax.episodes.object_masks import Part
from vitar_jax.episodes.object_tags import MENTION
from vitar_jax.errors import DataError

SEG = "[SEG]"

_MARKS = ("<think>", "</think>", "<answer>", "</answer>", SEG)


def parse_trace(text: str) -> ParsedTurn:
    """Parses a turn: the thought is the first `<think>` span, the answer the first `<answer>` span."""
    thought = span(text, "think")
    answer = span(text, "answer")
    words = None if thought is None else _without_seg(text[slice(*thought)])
    if answer is None:
        return ParsedTurn(words, None, ActionError("bad_answer", "The turn has no <answer>."))
    if not (said := _without_seg(text[slice(*answer)])):
        return ParsedTurn(words, None, ActionError("bad_answer", "The answer is empty."))
    return ParsedTurn(words, None, Answer(said))


def write_trace(thought: str, outcome: Answer | ToolCall) -> str:
    """Writes a thought and an answer as a turn that `parse_trace` reads, with `[SEG]` behind every mention.

    Raises:
      DataError: If the outcome is a tool call, or if a text spells the turn's own markup.
    """
    if not isinstance(outcome, Answer):
        raise DataError(f"{outcome.name}: a trace answers, and cannot call a tool")
    refuse_markup((thought, outcome.text))
    return f"<think>{with_seg(thought)}</think>\n\n<answer>{with_seg(outcome.text)}</answer>"


def refuse_markup(texts: Sequence[str], marks: Sequence[str] = _MARKS) -> None:
    """Raises DataError if a text of a trace spells the markup of its turn."""
    for text in texts:
        if mark := next((mark for mark in marks if mark in text), None):
            raise DataError(f"got {mark} in a trace's text, which is markup of its turn: {text!r}")


def with_seg(text: str) -> str:
    """Writes `[SEG]` behind every mention in a text, which is stripped of outer white space."""
    return MENTION.sub(rf"\g<0> {SEG}", text.strip())


def parts(text: str, places: Sequence[int]) -> list[Part | None]:
    """Returns the part of a turn in which each mask lies, or None, as VRT's published evaluation counts them.

    Masks inside the first `<answer>` span belong to the answer, those before it to the reasoning. Masks behind it count
    nowhere, nor do any masks of a turn without such a span.

    Args:
      places: Position in the text of each `[SEG]` token.
    """
    answer = span(text, "answer")
    if answer is None:
        return [None] * len(places)
    start, end = answer
    return ["reasoning" if place < start else "answer" if place < end else None for place in places]


def span(text: str, tag: str) -> tuple[int, int] | None:
    """Returns start and end of what the first pair of tags encloses."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    end = text.find(closing, start) if start >= 0 else -1
    return (start + len(opening), end) if end >= 0 else None


def _without_seg(text: str) -> str:
    return text.replace(f" {SEG}", "").replace(SEG, "").strip()
