"""Decode that reads only the live part of the cache plays what decode that reads all of it plays."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit.rollout import LIMITS, PROCESSOR, SIZES, banned, engine, episodes, run, view
from vitar_jax.bench.decode_lengths import decode_pair
from vitar_jax.errors import ConfigError
from vitar_jax.rollout import sampler
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.scheduler import Scheduler

LENGTHS = (48, 96)


def test_the_length_covers_the_longest_slot() -> None:
    config = RolloutConfig(4, (32,), decode_lengths=(512, 128, 4096))
    assert [config.reach(n, 1024) for n in (1, 128, 129, 512, 513, 1024)] == [128, 128, 512, 512, None, None]
    assert SIZES.reach(1, 1024) is None
    with pytest.raises(ConfigError, match="rollout.decode_lengths: got .*expected positive lengths"):
        RolloutConfig(4, (32,), decode_lengths=(128, 0))


@pytest.mark.slow
def test_lengths_change_no_episode_and_compile_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = episodes(10)
    run(engine(), view(), whole)
    decode, reaches, compiled = sampler.decode, [], []

    def seen(weights: Any, state: Any, *arguments: Any, **options: Any) -> Any:
        before = decode._cache_size()
        found = decode(weights, state, *arguments, **options)
        reached = int(np.asarray(found[0].cache.lengths)[np.asarray(found[3]) > 0].max(initial=0))
        reaches.append((options["reach"], reached))
        compiled.append(decode._cache_size() - before)
        return found

    monkeypatch.setattr(sampler, "decode", seen)
    short = Engine(dataclasses.replace(SIZES, decode_lengths=LENGTHS), PROCESSOR, LIMITS, banned())
    Scheduler(short, view()).warm_up()
    assert {reach for reach, _ in reaches} == {None, *LENGTHS}
    reaches.clear()
    compiled.clear()
    played = episodes(10)
    run(short, view(), played)
    assert {reach for reach, _ in reaches} == {None, *LENGTHS}  # prompts are short, and a tool's image makes some slots long
    assert all(reached <= (reach or LIMITS.tokens) for reach, reached in reaches) and not any(compiled)
    for ours, wanted in zip(played, whole, strict=True):
        assert ours.token_ids == wanted.token_ids and ours.end_reason == wanted.end_reason
        recorded = [np.array([p for p in one.logprobs if p is not None]) for one in (ours, wanted)]
        np.testing.assert_allclose(*recorded, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_no_layer_of_the_cache_is_copied() -> None:
    """The program has no copy of a whole layer, and no value of the whole capacity but the layers that it updates in place."""
    slots, capacity, reach = 4, 1024, 64
    state = sampler.create_state(view(), slots, capacity)
    sampling = SamplingState(**sampling_arrays(slots), banned=jnp.zeros(state.logits.shape[1], bool))
    arguments = (view(), state, sampling, np.ones(slots, np.int32), np.int32(slots))

    def compiled(**options: int) -> Any:
        return sampler.decode.lower(*arguments, steps=4, **options).compile()

    program = compiled(reach=reach)
    layer = ",".join(map(str, state.cache.keys[0].shape))
    assert layer in program.as_text() and not re.search(rf"f32\[{layer}\]\S* copy\(", program.as_text())
    leaves = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache))
    assert program.memory_analysis().temp_size_in_bytes < leaves / 8


@pytest.mark.slow
def test_the_bench_compares_the_same_tokens() -> None:
    pair, error = decode_pair(view(), "tiny", slots=4, capacity=LIMITS.tokens, live=48, steps=5)
    assert pair.name == "decode, 48 of 256 live" and error <= 1e-5
    assert pair.ours().shape == (4, 5) and (pair.peer() < 0).all()
