"""The device side of rollout: what is drawn, what is recorded, and what a slot leaves alone."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest
import torch
from scipy import special, stats
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.kit import tiny
from vitar_jax.models.kernels.backend import Cached
from vitar_jax.parallel.mesh import make_mesh, replicated
from vitar_jax.plan.hlo import collectives
from vitar_jax.rollout import sampler
from vitar_jax.rollout.kv_cache import KVCache
from vitar_jax.rollout.sampler import DecodeState
from vitar_jax.rollout.sampling import SamplingState, sample_tokens, sampling_arrays
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

SLOTS = 2048  # each draws one token: a sample of that size from one call
CAPACITY = 4
STOP = 9
V = tiny.VOCAB


@cache
def view() -> RolloutWeights:
    return rollout_weights(tiny.pretrained()[1])


def state_with(logits: np.ndarray, slots: int = SLOTS) -> DecodeState:
    state = sampler.create_state(view(), slots=slots, capacity=CAPACITY)
    logits = np.broadcast_to(logits, (slots, V)).astype(np.float32)
    return dataclasses.replace(state, logits=logits, done=np.zeros(slots, bool))


def sampling_with(
    *, banned: np.ndarray | None = None, slots: int = SLOTS, seed: int = 0, **values: float | np.ndarray
) -> SamplingState:
    arrays = sampling_arrays(slots)
    for name, value in values.items():
        arrays[name][:] = value
    arrays["seeds"][:], arrays["samples"][:], arrays["stop_ids"][:, 1] = seed, np.arange(slots), STOP
    return SamplingState(**arrays, banned=np.zeros(V, bool) if banned is None else banned)


def decode(state: DecodeState, sampling: SamplingState, budgets: np.ndarray, *, steps: int, quorum: int = SLOTS) -> tuple:
    return sampler.decode(view(), state, sampling, budgets, np.int32(quorum), steps=steps)


def prefill(state: DecodeState, **read: np.ndarray) -> DecodeState:
    return sampler.prefill(view(), state, **read)


def draw(logits: np.ndarray, sampling: SamplingState) -> tuple[np.ndarray, np.ndarray]:
    """One token and its recorded log-probability for each slot."""
    budgets = np.ones(len(sampling.temperature), np.int32)
    state = state_with(logits, len(budgets))
    _, tokens, logprobs, counts = decode(state, sampling, budgets, steps=1)
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


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution_and_record_it(temperature: float) -> None:
    logits, banned = random_logits(), ban_half()
    banned[np.argsort(logits)[-3:]] = True  # the most likely ones
    expected = special.log_softmax(np.where(banned, -np.inf, logits / temperature))
    tokens, logprobs = draw(logits, sampling_with(temperature=temperature, banned=banned))
    assert not banned[tokens].any()
    assert follows(tokens, np.exp(expected))
    np.testing.assert_allclose(logprobs, expected[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(7, 1.0, 0.0), (0, 1.0, 0.05), (40, 0.9, 0.02), (300, 0.5, 0.0)])
def test_cuts_are_those_of_transformers(top_k: int, top_p: float, min_p: float) -> None:
    logits = random_logits(5)
    scores = torch.tensor(logits, dtype=torch.float32)[None]
    for warper in (
        *([TopKLogitsWarper(top_k)] if top_k else []),
        TopPLogitsWarper(top_p),
        MinPLogitsWarper(min_p),
    ):
        scores = warper(None, scores)
    expected = scores.double().softmax(-1).numpy()[0]
    tokens, recorded = draw(logits, sampling_with(top_k=top_k, top_p=top_p, min_p=min_p))
    assert 3 < (expected > 0).sum() < V / 4
    assert follows(tokens, expected)
    np.testing.assert_allclose(recorded, special.log_softmax(logits)[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_slot_draws_in_its_own_way() -> None:
    logits = random_logits(3)
    temperature = np.where(np.arange(SLOTS) % 3 == 0, 0.0, 1.0)
    top_p = np.where(np.arange(SLOTS) % 3 == 1, 1e-6, 1.0)
    tokens, logprobs = draw(logits, sampling_with(temperature=temperature, top_p=top_p))
    best = logits.argmax()
    assert (tokens[np.arange(SLOTS) % 3 < 2] == best).all()  # greedy, and a nucleus of one
    assert follows(tokens[np.arange(SLOTS) % 3 == 2], special.softmax(logits))
    np.testing.assert_allclose(logprobs, special.log_softmax(logits)[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_has_blown_up_draws_tokens_that_there_are(temperature: float) -> None:
    sampling = dataclasses.replace(sampling_with(temperature=temperature), banned=np.zeros(300, bool))
    tokens, logprobs = sample_tokens(np.full((SLOTS, 300), np.nan), sampling, np.full((SLOTS, 2), 0.5))
    assert (tokens < 300).all() and np.isnan(logprobs).all()


# Turns


def leaves(state: DecodeState, slot: int) -> list[np.ndarray]:
    return [np.asarray(leaf)[slot] for leaf in jax.tree.leaves(state)]


def copied(state: DecodeState) -> DecodeState:
    """Programs give their state away; this one may be looked at again."""
    return jax.tree.map(lambda leaf: np.array(leaf), state)


def prompt(lengths: list[int], padded: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    slots = len(lengths)
    read = np.where(np.array(lengths)[:, None] > 0, np.arange(slots)[:, None], slots)
    return {
        "features": np.zeros((8, 64), np.float32),
        "slots": read.astype(np.int32),
        "starts": np.zeros(slots, np.int32),
        "token_ids": rng.integers(0, 200, (slots, padded)).astype(np.int32),
        "vision_index": np.full((slots, padded), -1, np.int32),
        "position_ids": np.tile(np.arange(padded, dtype=np.int32), (slots, 3, 1)),
        "counts": np.array(lengths, np.int32),
    }


@pytest.mark.slow
def test_a_turn_ends_at_a_stop_id_or_at_its_budget() -> None:
    state = sampler.create_state(view(), slots=4, capacity=64)
    state = prefill(state, **prompt([3, 5, 2, 0], 8))
    likely = np.ones(V, bool)
    likely[[STOP, 20, 21, 22]] = False  # one in four, more or less, ends the turn
    budgets = np.array([30, 2, 30, 30], np.int32)
    before = copied(state)
    sampling = sampling_with(banned=likely, slots=4, temperature=100.0)
    state, tokens, logprobs, counts = decode(state, sampling, budgets, steps=32)
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


@pytest.mark.slow
def test_decoding_in_chunks_draws_the_same() -> None:
    def play(chunk: int) -> np.ndarray:
        state = sampler.create_state(view(), slots=4, capacity=64)
        state = prefill(state, **prompt([3, 5, 2, 4], 8))
        sampling = sampling_with(slots=4, seed=3)
        drawn = np.zeros((4, 0), int)
        while drawn.shape[1] < 8:
            left = np.full(4, 9 - drawn.shape[1], np.int32)  # never reached
            state, tokens, _, counts = decode(state, sampling, left, steps=chunk)
            assert (np.asarray(counts) == chunk).all()
            drawn = np.concatenate([drawn, np.asarray(tokens)], axis=1)
        return drawn

    whole = play(8)
    assert STOP not in whole
    assert np.array_equal(play(4), whole)


@pytest.mark.slow
def test_reading_in_pieces_is_reading_at_once() -> None:
    whole = prompt([7, 4, 8], 8)
    at_once = prefill(sampler.create_state(view(), slots=3, capacity=16), **whole)
    state = sampler.create_state(view(), slots=3, capacity=16)
    for start in (0, 4):
        per_token = ("token_ids", "vision_index", "position_ids")
        piece = whole | {name: whole[name][..., start : start + 4] for name in per_token}
        piece |= {"starts": whole["starts"] + start, "counts": np.clip(whole["counts"] - start, 0, 4)}
        piece["slots"] = np.where(piece["counts"][:, None] > 0, whole["slots"], 3)
        state = prefill(state, **piece)
    assert np.array_equal(state.cache.lengths, at_once.cache.lengths)
    assert np.array_equal(state.next_position, at_once.next_position)
    np.testing.assert_allclose(state.logits, at_once.logits, rtol=1e-4, atol=1e-4)


def test_a_slot_with_nothing_to_read_stays_as_it_was() -> None:
    state = prefill(sampler.create_state(view(), slots=3, capacity=16), **prompt([3, 4, 5], 8))
    before = copied(state)
    after = prefill(state, **prompt([0, 4, 0], 8, seed=1) | {"starts": np.array([0, 4, 0], np.int32)})
    for slot in (0, 2):
        for old, new in zip(leaves(before, slot), leaves(after, slot), strict=True):
            assert np.array_equal(old, new)
    assert after.cache.lengths[1] == 8


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_slots_that_share_a_prompt_are_as_if_each_had_read_it(devices: int) -> None:
    """Also where slots 0 and 1, 2 and 3, ... lie on devices of their own; what was in slots before is forgotten."""
    mesh = make_mesh(devices=jax.devices()[:devices]) if devices > 1 else None
    weights = dataclasses.replace(view(), mesh=mesh)
    if mesh:
        weights = jax.device_put(weights, replicated(mesh))
    lengths = [3, 5, 8, 4]
    each = prompt(lengths, 8)
    apart = prefill(sampler.create_state(view(), slots=4, capacity=16), **each)
    state = sampler.create_state(weights, slots=8, capacity=16)
    before = prompt([7] * 8, 8, seed=2)
    state = sampler.prefill(weights, state, **before)
    slots = np.array([[1, 0], [2, 3], [5, 8], [7, 6]], np.int32)  # 8 is none: slot 4 reads nothing
    state = sampler.prefill(weights, state, **each | {"slots": slots})
    alone = prefill(sampler.create_state(view(), slots=8, capacity=16), **before)
    for slot, source in enumerate([0, 0, 1, 1, None, 2, 3, 3]):
        ours, theirs = leaves(state, slot), leaves(alone, slot) if source is None else leaves(apart, source)
        for new, old in zip(ours[:-4], theirs[:-4], strict=True):  # what lies past the length is not looked at
            count = lengths[source] if source is not None else 7
            np.testing.assert_allclose(new[:, :count], old[:, :count], atol=1e-5)
        for new, old in zip(ours[-4:], theirs[-4:], strict=True):
            np.testing.assert_allclose(new, old, atol=1e-4)


def test_slots_stay_on_their_devices() -> None:
    """Reading and drawing move no cache between the devices that slots are spread over."""
    mesh = make_mesh(devices=jax.devices()[:4])
    weights = jax.device_put(dataclasses.replace(view(), mesh=mesh), replicated(mesh))
    state = sampler.create_state(weights, slots=8, capacity=1024)
    cache = state.cache.keys[0].nbytes / 8  # of one slot
    read = prompt([3, 5, 8, 4], 8) | {"slots": np.array([[1, 0], [2, 3], [5, 8], [7, 6]], np.int32)}
    text = sampler.prefill.lower(weights, state, **read).compile().as_text()
    assert all(collective.bytes / collective.count < cache for collective in collectives(text))


@pytest.mark.slow
def test_the_host_looks_when_enough_turns_have_ended() -> None:
    def play(quorum: int) -> np.ndarray:
        state = prefill(sampler.create_state(view(), slots=4, capacity=64), **prompt([3, 5, 2, 4], 8))
        budgets = np.array([2, 9, 5, 12], np.int32)
        banned = np.arange(V) == STOP
        return np.asarray(decode(state, sampling_with(banned=banned, slots=4), budgets, steps=30, quorum=quorum)[3])

    assert play(1).tolist() == [2, 2, 2, 2]
    assert play(2).tolist() == [2, 5, 5, 5]
    assert play(4).tolist() == play(9).tolist() == [2, 9, 5, 12]


@pytest.mark.slow
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
    seen = Cached(written.keys[1].swapaxes(1, 2), written.values[1].swapaxes(1, 2), cache.lengths, np.array([2, 0]))
    assert seen.mask(2)[1].astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert written.grow(np.array([2, 0])).lengths.tolist() == [6, 1]


@pytest.mark.slow
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
    state = prefill(
        state,
        features=sampler.feature_buffer(view(), rows=1),
        slots=np.zeros((1, 1), np.int32),
        starts=np.zeros(1, np.int32),
        token_ids=ids,
        vision_index=index,
        position_ids=padded,
        counts=np.array([count]),
    )
    assert int(state.next_position[0]) == next_position
