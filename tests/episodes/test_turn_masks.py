"""Masks of a turn: every `[SEG]` token has an entry, found by its id, with its object, part and mask."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.images import noise
from tests.kit.vrt import VRT, chat, processor
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trace_parser import parts
from vitar_jax.episodes.turn_masks import turn_masks

CHAT = chat()
SEG = CHAT.token_id("[SEG]")
PIECES = [*CHAT.text("[SEG]")]  # the text, which is no token


def made(seed: int) -> tuple[Mask, float]:
    return Mask.of(np.random.default_rng(seed).random((30, 40)) > 0.5, "original"), seed / 10


def begun(turn_tokens: int = 200) -> Episode:
    return Episode(Sample("s", "Where?", (noise(40, 30),), "A"), VRT, processor(), Limits(1500, turn_tokens))


def test_each_token_has_its_object_its_part_and_its_mask() -> None:
    episode, first, second = begun(), made(1), made(2)
    start = len(episode.token_ids)
    text = (
        "<think>A (<ver><obj1> [SEG]</ver>), [SEG] and (<ver><obj2>\n[SEG]</ver>).</think><answer>B <vea><obj2> [SEG]</vea>"
        "</answer> [SEG]"
    )
    token_ids = CHAT.turn(text, VRT.allowed_tokens)
    episode.add_turn(token_ids, [-0.5] * len(token_ids), masks=[first, second])
    places = [start + index for index, token in enumerate(token_ids) if token == SEG]
    assert episode.turns[0].masks == (
        ObjectMask(places[0], "obj1", "reasoning", *first),
        ObjectMask(places[1], None, "reasoning", *second),
        ObjectMask(places[2], "obj2", "reasoning"),
        ObjectMask(places[3], "obj2", "answer"),
        ObjectMask(places[4]),
    )
    assert all(episode.token_ids[mask.token] == SEG for mask in episode.turns[0].masks)
    record = episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="")
    assert record.turns[0].masks == episode.turns[0].masks


def test_a_text_that_spells_seg_is_no_token() -> None:
    """As the second of three: with it counted, the last token would be out of place, and in the answer."""
    assert SEG not in PIECES and CHAT.decode(PIECES) == "[SEG]"
    before, after = CHAT.text("<think><obj1> "), CHAT.text("</think>, <obj3> ")
    answer = CHAT.text("<answer>yes</answer>")
    token_ids = [*before, SEG, *CHAT.text(" <obj2> "), *PIECES, *after, SEG, *answer, CHAT.im_end]
    episode = begun()
    episode.add_turn(token_ids, None, masks=[made(1), made(2)])
    found = episode.turns[0].masks
    assert episode.turns[0].text.count("[SEG]") == 3
    assert [(mask.name, mask.part) for mask in found] == [("obj1", "reasoning"), ("obj3", "reasoning")]
    assert [episode.token_ids[mask.token] for mask in found] == [SEG, SEG]


def test_a_token_on_which_the_budget_ends_has_an_entry() -> None:
    episode = begun(turn_tokens=4)
    token_ids = [*CHAT.text("A "), SEG][-3:]
    episode.add_turn(token_ids, None)
    assert episode.turns[0].masks == (ObjectMask(len(token_ids) - 1 + episode.turns[0].start),)


def test_more_masks_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 2 masks, expected at most one for each of 1 \[SEG\]"):
        turn_masks(CHAT, [SEG], [made(1), made(2)])


FRAGMENTS = [[SEG], PIECES, *(list(CHAT.text(text)) for text in ("<answer>", "</answer>", "<obj1>", " é"))]
FRAGMENT = st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(CHAT.token_ids.tolist()).map(lambda token: [token]))


@settings(max_examples=60)
@given(st.lists(FRAGMENT, max_size=30))
def test_any_tokens_have_an_entry_for_each_seg(fragments: list[list[int]]) -> None:
    """Also in the middle of a character, whose bytes are then no character. The parts are those of the whole text."""
    token_ids = [token for fragment in fragments for token in fragment]
    found = turn_masks(CHAT, token_ids, start=7)
    indices = [index for index, token in enumerate(token_ids) if token == SEG]
    assert [mask.token for mask in found] == [7 + index for index in indices]
    places = [len(CHAT.decode(token_ids[:index])) for index in indices]
    assert [mask.part for mask in found] == parts(CHAT.decode(token_ids), places)
