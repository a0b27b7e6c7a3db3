"""Masks in a report: as COCO's run lengths, each with the place of its mention in the turn's text."""

from collections.abc import Callable, Sequence
from typing import Any

from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import SegmentedObject
from vitar_jax.episodes.trace_parser import SEG
from vitar_jax.episodes.trajectory import Turn

Pieces = Callable[[Sequence[int]], Sequence[str]]  # from token ids to the text of each token


def turn_masks(token_ids: Sequence[int], turn: Turn, pieces: Pieces | None) -> list[dict[str, Any]]:
    """Returns the masks of a turn of an episode with these tokens, as JSON.

    `span` has start and end of the mention in the turn's text, `<obj1> [SEG]`, in code points. It is None if a text that spells
    `[SEG]` could be taken for the token, which only `pieces` tells apart.
    """
    places = _places(token_ids, turn, pieces)
    return [
        {
            "name": one.name,
            "part": one.part,
            "score": one.score,
            "span": None if place is None else _span(turn.text, place, one),
            **_runs(one.mask),
        }
        for one, place in zip(turn.masks, places, strict=True)
    ]


def gold_masks(objects: Sequence[SegmentedObject]) -> list[dict[str, Any]]:
    """Returns the objects that the reasoning or the answer should show, as JSON; all objects if none is marked so."""
    wanted = [one for one in objects if one.in_reasoning or one.in_answer] or objects
    return [{"name": one.name, "caption": one.caption, **_runs(one.mask)} for one in wanted]


def _places(token_ids: Sequence[int], turn: Turn, pieces: Pieces | None) -> list[int | None]:
    """Returns the position in the turn's text of each `[SEG]` token."""
    if pieces is not None:
        texts = pieces(token_ids[turn.start : turn.end])
        return [sum(map(len, texts[: one.token - turn.start])) for one in turn.masks]
    before = [len(text) for text in turn.text.split(SEG)[:-1]]
    if len(before) != len(turn.masks):
        return [None] * len(turn.masks)
    return [sum(before[: n + 1]) + n * len(SEG) for n in range(len(before))]


def _span(text: str, place: int, mask: ObjectMask) -> tuple[int, int]:
    before = text[:place].rstrip()
    mention = f"<{mask.name}>"
    start = len(before) - len(mention) if mask.name is not None and before.endswith(mention) else place
    return start, place + len(SEG)


def _runs(mask: Mask | None) -> dict[str, Any]:
    """Returns COCO's size (height, width) and compressed run lengths, and the area in pixels; None without a mask."""
    if mask is None:
        return {"size": None, "counts": None, "area": None}
    return {"size": mask.shape, "counts": mask.counts.decode("ascii"), "area": int(mask.area)}
