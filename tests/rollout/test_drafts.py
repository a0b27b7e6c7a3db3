"""Drafts are what a search by hand finds in the same text, and slots look in the text that their episodes have."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.rollout import BLIND, LIMITS, PROCESSOR, episodes, forked, sample
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.rollout.drafts import MATCHED, REFERENCE, SlotTexts, Texts, WrittenTexts, look_up

WIDTH, COUNT = 24, 4


def by_hand(text: Sequence[int]) -> list[int]:
    """The tokens after the last of the longest earlier occurrences of the text's end."""
    for length in range(MATCHED, 0, -1):
        end = list(text[-length:])
        if len(end) < length or -1 in end:
            continue
        for stop in range(len(text) - 1, length - 1, -1):
            if list(text[stop - length : stop]) == end:
                follow = list(text[stop : stop + COUNT])
                return follow[: follow.index(-1)] if -1 in follow else follow
    return []


def drafts(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    tokens = np.random.default_rng(0).integers(0, 3, (len(rows), WIDTH)).astype(np.int32)  # past a row's end stands anything
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    found, known = look_up(Texts(tokens, np.array([len(text) for text in rows], np.int32)), COUNT)
    return [draft[:count].tolist() for draft, count in zip(np.asarray(found), np.asarray(known), strict=True)]


texts = st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, -1]), min_size=1, max_size=WIDTH)


@settings(max_examples=60)
@given(st.lists(texts, min_size=3, max_size=3))
def test_drafts_are_those_of_a_search_by_hand(rows: list[list[int]]) -> None:
    assert drafts(rows) == [by_hand(text) for text in rows]


def test_the_longest_match_wins_and_then_the_last() -> None:
    a, b, c, d, e, x = range(6)
    rows = [[a, b, c, d, -1, x, b, c, e, b, c], [a, b, c, d, b, x, -1, b, c], [a, b, -1, c]]
    assert drafts(rows) == [[e, b, c], [d, b, x], []]


def finished(group: Sequence[Episode], word: str) -> None:
    for episode in group:
        episode.add_turn([*PROCESSOR.chat.text(word), PROCESSOR.chat.im_end], None)


def test_a_groups_own_text_stands_last_and_the_writers_first() -> None:
    protocol = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.", tools=("zoom",))
    written, chat = WrittenTexts(), PROCESSOR.chat
    ours, others = ([Episode(sample(n), protocol, PROCESSOR, LIMITS).fork(m) for m in range(2)] for n in range(2))
    first = written.around(ours[0])
    assert len(first) == REFERENCE
    assert chat.decode([token for token in first if token >= 0]).count('"name": "zoom"') == 1  # the writer's call
    for group, word in ((ours[1:], "left"), (others, "upper")):
        finished(group, word)
        for episode in group:
            written.add(episode)
    after = [token for token in written.around(ours[0]) if token >= 0]
    assert after[: (first >= 0).sum()] == first[first >= 0].tolist()
    assert after.index(chat.text("upper")[0]) < after.index(chat.text("left")[0])
    theirs = written.around(others[0])
    assert np.flatnonzero(theirs == chat.text("upper")[0])[0] > np.flatnonzero(theirs == chat.text("left")[0])[0]
    for _ in range(200):  # many later episodes do not push out the own group
        written.add(others[0])
    assert (written.around(ours[0]) == -1).sum() < REFERENCE // 20
    assert chat.text("left")[0] in written.around(ours[0])


def test_a_slot_follows_its_episode() -> None:
    (episode,), chat = forked(1, 1), PROCESSOR.chat
    rows = SlotTexts(WrittenTexts(), slots=2, capacity=LIMITS.tokens)

    def own() -> list[int]:
        texts = rows.texts()
        assert texts.ends[0] == REFERENCE
        return np.asarray(texts.tokens)[1, REFERENCE : int(texts.ends[1])].tolist()

    def words(tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token != chat.image_pad]

    rows.begin(1)
    rows.follow(1, episode, [])
    assert own() == words(episode.token_ids) and len(own()) < len(episode.token_ids)
    turn: list[int] = []
    for word in ("zoom", " upper", " left"):
        turn += chat.text(word)
        rows.follow(1, episode, turn)
        assert own() == words([*episode.token_ids, *turn])
    episode.add_turn([*turn, chat.im_end], None)
    assert not episode.finished  # an observation or an error follows
    rows.follow(1, episode, [])
    assert own() == words(episode.token_ids)
    rows.begin(1)
    other = episodes(2, BLIND)[1]
    rows.follow(1, other, [])
    assert own() == words(other.token_ids)
