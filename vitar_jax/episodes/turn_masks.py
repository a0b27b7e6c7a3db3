"""Finds the `[SEG]` tokens of a turn, each with its object, its part of the turn and its mask."""

import re
from collections.abc import Sequence

from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.object_tags import MENTION
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.trace_parser import SEG, parts
from vitar_jax.processing.chat import Chat

_MENTION_AT_END = re.compile(MENTION.pattern + r"\s*\Z")


def turn_masks(
    chat: Chat, token_ids: Sequence[int], masks: Sequence[tuple[Mask, float]] = (), *, start: int = 0
) -> tuple[ObjectMask, ...]:
    """Returns an entry for each `[SEG]` token of a turn, in order. Text that only spells `[SEG]` is no such token.

    An entry has the name of the object whose mention is directly before the token, apart from white space.

    Args:
      token_ids: Tokens of the turn, without its stop token.
      masks: Masks and predicted IoUs of the first `[SEG]` tokens. The other tokens have none.
      start: Index of the turn's first token in its trajectory.

    Raises:
      ValueError: If there are more masks than `[SEG]` tokens.
    """
    seg = chat.token_id(SEG)
    found = [index for index, token in enumerate(token_ids) if token == seg]
    if len(masks) > len(found):
        raise ValueError(f"got {len(masks)} masks, expected at most one for each of {len(found)} {SEG} tokens")
    # No character spans a [SEG], so the texts between are what they are in the whole text.
    edges = zip([0, *(index + 1 for index in found)], [*found, len(token_ids)], strict=True)
    texts = [chat.decode(token_ids[first:last]) for first, last in edges]
    places, place = [], -len(SEG)
    for text in texts[:-1]:
        place += len(SEG) + len(text)
        places.append(place)
    names = [match[1] if (match := _MENTION_AT_END.search(text)) else None for text in texts[:-1]]
    made = [*masks, *[(None, None)] * (len(found) - len(masks))]
    entries = zip(found, names, parts(SEG.join(texts), places), made, strict=True)
    return tuple(ObjectMask(start + index, name, part, mask, score) for index, name, part, (mask, score) in entries)
