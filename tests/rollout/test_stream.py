"""The stream of episodes: what is played when, on which slots, and that nothing compiles on the way."""

import dataclasses
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.kit.rollout import (
    LIMITS,
    PROCESSOR,
    SIZES,
    assert_nothing_compiles,
    banned,
    engine,
    episodes,
    model,
    run,
    view,
)
from vitar_jax.episodes.episode import Episode
from vitar_jax.rollout import sampler
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.weights import rollout_weights


@pytest.mark.slow
def test_what_is_played_when_depends_on_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that take their time neither change what each call decodes nor the order in which episodes end."""
    decode, act, looks = sampler.decode, Episode.add_turn, []

    def seen(view, state, sampling, budgets, *rest, **options):
        looks.append(tuple(budgets))
        return decode(view, state, sampling, budgets, *rest, **options)

    monkeypatch.setattr(sampler, "decode", seen)
    ended = list(Scheduler(engine(), view()).play([e] for e in episodes(12)))
    expected, waits = list(looks), np.random.default_rng(0)

    def slow(self: Episode, *rest: Any, **options: Any) -> None:
        time.sleep(waits.uniform(0, 0.03))
        act(self, *rest, **options)

    monkeypatch.setattr(Episode, "add_turn", slow)
    looks.clear()
    again = list(Scheduler(engine(), view()).play([e] for e in episodes(12)))
    assert [e.sample.sample_id for e in again] == [e.sample.sample_id for e in ended]
    assert looks == expected
    assert [e.sample.sample_id for e in ended] != sorted((e.sample.sample_id for e in ended), key=lambda i: int(i[7:]))


@pytest.mark.slow
def test_others_write_while_a_tool_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is acted on ends only after the next call has been decoded."""
    decode, act = sampler.decode, Episode.add_turn
    called, waited = threading.Semaphore(0), []

    def seen(*arguments, **options):
        drawn = decode(*arguments, **options)
        called.release()
        return drawn

    def slow(self: Episode, *rest: Any, **options: Any) -> None:
        while called.acquire(blocking=False):
            pass
        waited.append(called.acquire(timeout=60))
        act(self, *rest, **options)

    # The first turn to end is one of four, the others go on.
    monkeypatch.setattr(sampler, "decode", seen)
    lone = Engine(dataclasses.replace(SIZES, quorum=1), PROCESSOR, LIMITS, banned())
    monkeypatch.setattr(Episode, "add_turn", lambda *rest, **options: (act if waited else slow)(*rest, **options))
    list(Scheduler(lone, view()).play([e] for e in episodes(4)))
    assert waited == [True]


@pytest.mark.slow
def test_free_slots_take_the_next_episodes() -> None:
    """Episodes of many lengths keep the slots as busy as they can be; a wave that waits for its last would not."""
    rollout = Engine(dataclasses.replace(SIZES, quorum=1, chunk=1), PROCESSOR, LIMITS, banned())
    played = episodes(40)
    run(rollout, view(), played)
    stats = rollout.stats
    written = [turn.end - turn.start for e in played for turn in e.turns]
    assert stats.episodes == 40 and stats.sampled == sum(written)
    observations = sum(len(e.turns) - 1 for e in played)  # each is read with the last token of the turn before
    assert stats.prefilled == sum(len(e.token_ids) for e in played) - sum(written) + observations
    assert stats.occupancy > 0.7


@pytest.mark.slow
def test_nothing_compiles_after_the_warm_up() -> None:
    weights = rollout_weights(model())
    assert_nothing_compiles(Engine(SIZES, PROCESSOR, LIMITS, banned()), weights)
