"""Decode with drafts samples what decode without them samples, in fewer steps where drafts are right."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.rollout import LIMITS, PROCESSOR, SIZES, banned, forked, run, view
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError
from vitar_jax.parallel.mesh import make_mesh, replicated
from vitar_jax.rollout import sampler, speculation
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.drafts import Texts
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.sampler import DecodeState
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays

SLOTS, CAPACITY, STEPS, DRAFTED, TURN = 4, 48, 24, 3, 24
MARKED, STOP = 17, 43
LENGTHS = [7, 4, 6, 8]
NOISE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.default_matmul_precision("highest"):
        yield


# One decode call


def prompt() -> dict[str, np.ndarray]:
    return {
        "features": np.zeros((8, 64), np.float32),
        "slots": np.arange(SLOTS, dtype=np.int32)[:, None],
        "starts": np.zeros(SLOTS, np.int32),
        "token_ids": np.random.default_rng(0).integers(40, 200, (SLOTS, 8)).astype(np.int32),
        "vision_index": np.full((SLOTS, 8), -1, np.int32),
        "position_ids": np.tile(np.arange(8, dtype=np.int32), (SLOTS, 3, 1)),
        "counts": np.array(LENGTHS, np.int32),
    }


def prefilled(weights: Any = None) -> DecodeState:
    weights = weights or view()
    return sampler.prefill(weights, sampler.create_state(weights, SLOTS, CAPACITY, marked=MARKED, marks=5), **prompt())


def sampling() -> SamplingState:
    arrays = sampling_arrays(SLOTS)
    arrays["samples"][:], arrays["temperature"][:] = [0, 1, 2, 25], [0.0, 1.0, 3.0, 1.0]
    arrays["stop_ids"][3, 0], arrays["top_p"][1] = STOP, 0.9
    return SamplingState(**arrays, banned=~np.isin(np.arange(tiny.VOCAB), [MARKED, 40, 41, 42, STOP]))


BUDGETS = np.array([TURN, 9, TURN, TURN], np.int32)


@cache
def plain() -> tuple[DecodeState, list[list[int]], list[list[float]]]:
    state, *sampled = sampler.decode(view(), prefilled(), sampling(), BUDGETS, np.int32(SLOTS), steps=STEPS)
    return state, *turns(*sampled)


def turns(tokens: Any, logprobs: Any, counts: Any) -> tuple[list[list[int]], list[list[float]]]:
    tokens, logprobs = ([row[:n].tolist() for row, n in zip(np.asarray(x), counts, strict=True)] for x in (tokens, logprobs))
    return tokens, logprobs


def drafted(future: Sequence[Sequence[int]], state: DecodeState | None = None, weights: Any = None, steps: int = STEPS) -> Any:
    """Decodes with rows of text whose ends foresee `future`: the prompt's last token, the future, and that token again."""
    rows = np.full((SLOTS, 96), -1, np.int32)
    ends = np.zeros(SLOTS, np.int32)
    for row, tokens in enumerate(future):
        last = int(prompt()["token_ids"][row, LENGTHS[row] - 1])
        text = [last, *tokens, -1, last]
        rows[row, : len(text)], ends[row] = text, len(text)
    state = prefilled(weights) if state is None else state
    return speculation.decode_drafted(
        weights or view(), state, sampling(), BUDGETS, np.int32(SLOTS), Texts(rows, ends), steps=steps, drafted=DRAFTED
    )


def assert_equal_states(ours: DecodeState, theirs: DecodeState) -> None:
    for name in ("next_position", "done"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    assert np.array_equal(ours.cache.lengths, theirs.cache.lengths)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=NOISE)
    assert ours.marks is not None and theirs.marks is not None
    assert np.array_equal(ours.marks.counts, theirs.marks.counts) and np.asarray(ours.marks.counts).any()
    np.testing.assert_allclose(ours.marks.states, theirs.marks.states, atol=NOISE)
    for slot, length in enumerate(np.asarray(ours.cache.lengths)):
        for leaf, other in zip(jax.tree.leaves(ours.cache), jax.tree.leaves(theirs.cache), strict=True):
            if leaf.ndim == 4:
                np.testing.assert_allclose(leaf[slot, :, :length], other[slot, :, :length], atol=NOISE)


def futures() -> dict[str, list[list[int]]]:
    wanted = plain()[1]
    wrong = [[{40: 41, 41: 42, 42: STOP, STOP: MARKED, MARKED: 40}[token] for token in turn] for turn in wanted]
    mixed = [[*turn[:10], *other[10:]] for turn, other in zip(wanted, wrong, strict=True)]
    longer = [[*turn, STOP, 40, 41] for turn in wanted]
    return {"right": wanted, "wrong": wrong, "mixed": mixed, "longer": longer, "none": [[] for _ in wanted]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["right", "wrong", "mixed", "longer", "none"])
def test_no_draft_changes_a_token_or_the_state(kind: str) -> None:
    theirs, wanted, wanted_logprobs = plain()
    assert [len(turn) for turn in wanted] == [TURN, 9, TURN, 2] and wanted[3][-1] == STOP
    state, tokens, logprobs, counts, used = drafted(futures()[kind])
    tokens, logprobs = turns(tokens, logprobs, counts)
    assert tokens == wanted
    for ours, others in zip(logprobs, wanted_logprobs, strict=True):
        np.testing.assert_allclose(ours, others, atol=NOISE)
    assert_equal_states(state, theirs)
    lengths, used = np.array([len(turn) for turn in wanted]), np.asarray(used)
    if kind in ("right", "longer"):
        # The row's end is matched up to 8 tokens, so that a true future is always found, but not where it repeats itself.
        assert (used <= np.ceil(lengths / 2)).all() and (used >= np.ceil(lengths / (1 + DRAFTED))).all()
    assert (used <= lengths).all()


@pytest.mark.slow
def test_rejected_places_are_as_if_never_written() -> None:
    _, wanted, _ = plain()
    state, first, _, counts, _ = drafted(futures()["wrong"], steps=5)
    past = np.arange(CAPACITY)[None] >= np.asarray(state.cache.lengths)[:, None]
    assert any(
        ((leaf != other) & past[:, None, :, None]).any()
        for leaf, other in zip(state.cache.keys, prefilled().cache.keys, strict=True)
    )  # drafts were written and rejected
    poisoned = jax.tree.map(lambda leaf: np.where(past[:, None, :, None], 1e3, leaf) if leaf.ndim == 4 else leaf, state.cache)
    left = BUDGETS - np.asarray(counts)
    for cache_ in (state.cache, poisoned):
        copied = jax.tree.map(lambda leaf: jax.numpy.array(np.asarray(leaf)), dataclasses.replace(state, cache=cache_))
        _, *rest = sampler.decode(view(), copied, sampling(), left, np.int32(SLOTS), steps=STEPS)
        more = turns(*rest)[0]
        assert [a + b for a, b in zip(turns(first, first, counts)[0], more, strict=True)] == wanted


@pytest.mark.slow
def test_devices_sample_the_same() -> None:
    mesh = make_mesh(devices=jax.devices()[:4])
    weights = jax.device_put(dataclasses.replace(view(), mesh=mesh), replicated(mesh))
    state, *sampled, used = drafted(futures()["mixed"], weights=weights)
    assert turns(*sampled)[0] == plain()[1]
    assert len({shard.device for shard in state.cache.keys[0].addressable_shards}) == 4
    assert np.array_equal(used, drafted(futures()["mixed"])[-1])


# Whole episodes


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="rollout.draft_tokens: got -1, expected at least 0"):
        RolloutConfig(4, (32,), draft_tokens=-1)


def played(temperature: float, **changes: Any) -> tuple[list[Episode], Engine]:
    engine = Engine(dataclasses.replace(SIZES, slots=8, **changes), PROCESSOR, LIMITS, banned())
    group = forked(6, 4)
    run(engine, view(), group, Sampling(temperature=temperature, seed=3), group_size=4)
    return group, engine


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_episodes_are_those_without_drafts(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, engine = played(temperature, draft_tokens=DRAFTED, decode_lengths=(96,))
    monkeypatch.setattr(speculation, "decode_drafted", None)  # is not called without drafts
    theirs, other = played(temperature)
    for one, wanted in zip(ours, theirs, strict=True):
        assert one.token_ids == wanted.token_ids and one.end_reason == wanted.end_reason
        recorded = [np.array([p for p in each.logprobs if p is not None]) for each in (one, wanted)]
        np.testing.assert_allclose(*recorded, rtol=0, atol=NOISE)
    stats = engine.stats
    assert stats.sampled == other.stats.sampled == sum(sum(e.loss_mask) for e in ours)
    assert stats.accepted > stats.sampled / 20 and other.stats.accepted == 0
    assert stats.passes < other.stats.passes and stats.slot_steps == 8 * stats.passes
    assert 0 < stats.occupancy <= 1
