"""The device side of rollout: what is drawn, what is recorded, and what a slot leaves alone."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
from scipy import special, stats

from tests import tiny
from vitar_jax.rollout import sampler
from vitar_jax.rollout.kv_cache import KVCache
from vitar_jax.rollout.sampler import DecodeState, SamplingState
from vitar_jax.rollout.view import RolloutView, rollout_view

SLOTS = 2048  # each draws one token: a sample of that size from one call
CAPACITY = 4
STOP = 9
V = tiny.VOCAB


@cache
def view() -> RolloutView:
    return rollout_view(tiny.pretrained()[1])


def state_with(logits: np.ndarray, slots: int = SLOTS) -> DecodeState:
    state = sampler.create_state(view(), slots=slots, capacity=CAPACITY)
    logits = np.broadcast_to(logits, (slots, V)).astype(np.float32)
    return dataclasses.replace(state, logits=logits, done=np.zeros(slots, bool))


def sampling_with(
    *,
    temperature: float | np.ndarray = 1.0,
    top_p: float | np.ndarray = 1.0,
    seed: int = 0,
    banned: np.ndarray | None = None,
    slots: int = SLOTS,
) -> SamplingState:
    return SamplingState(
        temperature=np.broadcast_to(temperature, slots).astype(np.float32),
        top_p=np.broadcast_to(top_p, slots).astype(np.float32),
        keys=sampler.slot_keys(np.uint32(seed), np.arange(slots, dtype=np.uint32), np.zeros(slots, np.uint32)),
        stop_ids=np.array([STOP], np.int32),
        banned=np.zeros(V, bool) if banned is None else banned,
    )


def draw(logits: np.ndarray, sampling: SamplingState) -> tuple[np.ndarray, np.ndarray]:
    """One token and its recorded log-probability for each slot."""
    budgets = np.ones(len(sampling.temperature), np.int32)
    state = state_with(logits, len(budgets))
    _, tokens, logprobs, counts = sampler.decode(view(), state, sampling, budgets, steps=1)
    assert np.array_equal(counts, budgets)
    return np.asarray(tokens)[:, 0], np.asarray(logprobs)[:, 0]


def follows(tokens: np.ndarray, probs: np.ndarray) -> bool:
    """Whether a chi-square test takes tokens as drawn from `probs`; rare ids are counted as one."""
    assert probs[tokens].all()
    common = probs * len(tokens) >= 5
    observed = np.bincount(tokens, minlength=V)
    counts = np.append(observed[common], observed[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * len(tokens)
    keep = expected > 0
    return stats.chisquare(counts[keep], expected[keep] * counts.sum() / expected[keep].sum()).pvalue > 1e-3


def random_logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, V)


def ban_half(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(V) < 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution_and_record_it(temperature: float) -> None:
    logits, banned = random_logits(), ban_half()
    banned[np.argsort(logits)[-3:]] = True  # the most likely ones
    expected = special.log_softmax(np.where(banned, -np.inf, logits / temperature))
    tokens, logprobs = draw(logits, sampling_with(temperature=temperature, banned=banned))
    assert not banned[tokens].any()
    assert follows(tokens, np.exp(expected))
    np.testing.assert_allclose(logprobs, expected[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8])
def test_top_p_keeps_the_nucleus_and_the_record(top_p: float) -> None:
    logits, banned = random_logits(2), ban_half()
    logprobs = special.log_softmax(np.where(banned, -np.inf, logits))
    order = np.argsort(-logprobs)
    before = np.cumsum(np.exp(logprobs[order])) - np.exp(logprobs[order])
    nucleus = order[before < top_p]
    probs = np.zeros(V)
    probs[nucleus] = np.exp(logprobs[nucleus]) / np.exp(logprobs[nucleus]).sum()
    tokens, recorded = draw(logits, sampling_with(top_p=top_p, banned=banned))
    assert set(tokens) <= set(nucleus)
    assert {i for i in nucleus if probs[i] > 0.01} <= set(tokens)
    assert len(nucleus) == 1 or follows(tokens, probs)
    np.testing.assert_allclose(recorded, logprobs[tokens], rtol=1e-5, atol=1e-5)


def test_every_slot_draws_in_its_own_way() -> None:
    logits = random_logits(3)
    temperature = np.where(np.arange(SLOTS) % 3 == 0, 0.0, 1.0)
    top_p = np.where(np.arange(SLOTS) % 3 == 1, 1e-6, 1.0)
    tokens, logprobs = draw(logits, sampling_with(temperature=temperature, top_p=top_p))
    best = logits.argmax()
    assert (tokens[np.arange(SLOTS) % 3 < 2] == best).all()  # greedy, and a nucleus of one
    assert follows(tokens[np.arange(SLOTS) % 3 == 2], special.softmax(logits))
    np.testing.assert_allclose(logprobs, special.log_softmax(logits)[tokens], rtol=1e-5, atol=1e-5)


def test_a_seed_draws_again_what_it_drew() -> None:
    logits = random_logits(4)
    first, second, other = (draw(logits, sampling_with(seed=seed))[0] for seed in (5, 5, 6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert (first[1:] != first[:-1]).any()


def test_greedy_takes_the_best_that_is_allowed() -> None:
    logits = random_logits(7)
    best, second = np.argsort(-logits)[:2]
    assert set(draw(logits, sampling_with(temperature=0.0))[0]) == {best}
    tokens, logprobs = draw(logits, sampling_with(temperature=0.0, banned=np.arange(V) == best))
    assert set(tokens) == {second}
    expected = special.log_softmax(np.delete(logits, best)).max()  # recorded as at temperature 1
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5)


# Turns


def leaves(state: DecodeState, slot: int) -> list[np.ndarray]:
    return [np.asarray(leaf)[slot] for leaf in jax.tree.leaves(state)]


def copied(state: DecodeState) -> DecodeState:
    """Programs give their state away; this one may be looked at again."""
    return jax.tree.map(lambda leaf: np.array(leaf), state)


def prompt(lengths: list[int], padded: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    slots = len(lengths)
    return {
        "features": np.zeros((8, 64), np.float32),
        "token_ids": rng.integers(0, 200, (slots, padded)).astype(np.int32),
        "vision_index": np.full((slots, padded), -1, np.int32),
        "position_ids": np.tile(np.arange(padded, dtype=np.int32), (slots, 3, 1)),
        "counts": np.array(lengths, np.int32),
    }


def test_a_turn_ends_at_a_stop_id_or_at_its_budget() -> None:
    state = sampler.create_state(view(), slots=4, capacity=64)
    state = sampler.extend(view(), state, **prompt([3, 5, 2, 0], 8))
    likely = np.ones(V, bool)
    likely[[STOP, 20, 21, 22]] = False  # one in four, more or less, ends the turn
    budgets = np.array([30, 2, 30, 30], np.int32)
    before = copied(state)
    sampling = sampling_with(banned=likely, slots=4, temperature=100.0)
    state, tokens, logprobs, counts = sampler.decode(view(), state, sampling, budgets, steps=32)
    tokens, logprobs, counts = np.asarray(tokens), np.asarray(logprobs), np.asarray(counts)
    for slot in range(3):
        drawn = tokens[slot, : counts[slot]]
        assert 0 < counts[slot] <= budgets[slot]
        assert STOP not in drawn[:-1]
        assert drawn[-1] == STOP or counts[slot] == budgets[slot]
        assert (logprobs[slot, : counts[slot]] < 0).all() and not logprobs[slot, counts[slot] :].any()
        # The last token is not in the cache: the next observation brings it.
        assert state.cache.lengths[slot] == before.cache.lengths[slot] + counts[slot] - 1
    assert counts[1] <= 2 and any(tokens[slot, counts[slot] - 1] == STOP for slot in (0, 2))
    # A slot that was never given anything to read draws nothing, and stays as it was.
    assert counts[3] == 0
    for old, new in zip(leaves(before, 3), leaves(state, 3), strict=True):
        assert np.array_equal(old, new)


def test_decoding_in_chunks_draws_the_same() -> None:
    def play(chunk: int) -> np.ndarray:
        state = sampler.create_state(view(), slots=4, capacity=64)
        state = sampler.extend(view(), state, **prompt([3, 5, 2, 4], 8))
        sampling = sampling_with(slots=4, seed=3)
        drawn = np.zeros((4, 0), int)
        while drawn.shape[1] < 8:
            left = np.full(4, 9 - drawn.shape[1], np.int32)  # never reached
            state, tokens, _, counts = sampler.decode(view(), state, sampling, left, steps=chunk)
            assert (np.asarray(counts) == chunk).all()
            drawn = np.concatenate([drawn, np.asarray(tokens)], axis=1)
        return drawn

    whole = play(8)
    assert STOP not in whole
    assert np.array_equal(play(4), whole)


def test_reading_in_pieces_is_reading_at_once() -> None:
    whole = prompt([7, 4, 8], 8)
    at_once = sampler.extend(view(), sampler.create_state(view(), slots=3, capacity=16), **whole)
    state = sampler.create_state(view(), slots=3, capacity=16)
    for start in (0, 4):
        piece = {name: array[..., start : start + 4] for name, array in whole.items() if array.ndim > 1}
        piece |= {"features": whole["features"], "counts": np.clip(whole["counts"] - start, 0, 4)}
        state = sampler.extend(view(), state, **piece)
    assert np.array_equal(state.cache.lengths, at_once.cache.lengths)
    assert np.array_equal(state.next_position, at_once.next_position)
    np.testing.assert_allclose(state.logits, at_once.logits, rtol=1e-4, atol=1e-4)


def test_a_slot_with_nothing_to_read_stays_as_it_was() -> None:
    state = sampler.extend(view(), sampler.create_state(view(), slots=3, capacity=16), **prompt([3, 4, 5], 8))
    before = copied(state)
    after = sampler.extend(view(), state, **prompt([0, 4, 0], 8, seed=1))
    for slot in (0, 2):
        for old, new in zip(leaves(before, slot), leaves(after, slot), strict=True):
            assert np.array_equal(old, new)
    assert after.cache.lengths[1] == 8


def test_a_forked_slot_is_a_copy() -> None:
    state = sampler.extend(view(), sampler.create_state(view(), slots=2, capacity=16), **prompt([3, 5], 8))
    forked = sampler.fork(state, np.array([1, 1, 0, 0, 1], np.int32))
    for slot, source in enumerate([1, 1, 0, 0, 1]):
        for old, new in zip(leaves(state, source), leaves(forked, slot), strict=True):
            assert np.array_equal(old, new)


def test_the_cache_keeps_what_is_written_and_drops_what_is_past_the_count() -> None:
    cache = KVCache.create(layers=2, slots=2, capacity=6, kv_heads=1, head_dim=2, dtype="float32")
    cache = dataclasses.replace(cache, lengths=np.array([4, 1], np.int32))
    places = cache.places(np.array([2, 0]), length=3)
    assert places.tolist() == [[4, 5, 6], [6, 6, 6]]  # 6 is out of range
    k = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 1, 2)
    written = cache.write(1, places, k, -k)
    assert np.array_equal(written.keys[1][0, 0, 4:], k[0, :2, 0])
    assert np.array_equal(written.values[1][0, 0, 4:], -k[0, :2, 0])
    for leaf in (written.keys[0], written.keys[1][0, 0, :4], written.keys[1][1]):
        assert not np.asarray(leaf).any()
    assert cache.mask(2)[1].astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert written.grow(np.array([2, 0])).lengths.tolist() == [6, 1]


@pytest.mark.parametrize("ending", [[], [8, 9]], ids=["image or video", "text"])
@pytest.mark.parametrize("grid", [(1, 4, 8), (3, 2, 4)], ids=["an image", "a video"])
def test_decoding_goes_on_where_the_next_piece_would(grid: tuple[int, int, int], ending: list[int]) -> None:
    using = tiny.processor(4)
    pad = using.chat.video_pad if grid[0] > 1 else using.chat.image_pad
    token_ids = np.array([8, *[pad] * using.tokens(grid), *ending])
    position_ids, next_position = using.append_positions(0, token_ids, [grid])
    length, count = 16, len(token_ids)
    padded = np.zeros((1, 3, length), np.int32)
    padded[0, :, :count] = position_ids
    state = sampler.create_state(view(), slots=1, capacity=length)
    ids, index = np.zeros((1, length), np.int32), np.full((1, length), -1, np.int32)
    ids[0, :count] = token_ids
    state = sampler.extend(view(), state, sampler.feature_buffer(view(), rows=1), ids, index, padded, np.array([count]))
    assert int(state.next_position[0]) == next_position
