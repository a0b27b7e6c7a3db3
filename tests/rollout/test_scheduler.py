"""The scheduler as a server uses it: late work, turns in progress, and episodes that are cancelled."""

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests.kit.rollout import DRAWN, engine, episodes, run, view
from vitar_jax.episodes.episode import Episode
from vitar_jax.rollout import sampler
from vitar_jax.rollout.scheduler import Scheduler


def tokens(played: Sequence[Episode]) -> list[tuple[list[int], list[float | None]]]:
    """Token ids and log-probabilities of each episode."""
    return [(episode.token_ids, episode.logprobs) for episode in played]


def fresh(count: int) -> list[Episode]:
    """Episodes that have not been played."""
    made = episodes(count)
    for episode in made:
        episode.sampling = DRAWN
    return made


def undisturbed(count: int) -> list[tuple[list[int], list[float | None]]]:
    """What episodes get that are played at once."""
    played = fresh(count)
    run(engine(), view(), played)
    return tokens(played)


@pytest.mark.slow
def test_work_that_arrives_late_stops_no_slot() -> None:
    """The second half of the episodes arrives, from another thread, only after the first half has finished."""
    expected, played = undisturbed(8), fresh(8)
    arrivals: queue.Queue[Episode | None] = queue.Queue()
    first_half = threading.Event()

    def feed() -> None:
        for episode in played[:3]:
            arrivals.put(episode)
        assert first_half.wait(timeout=120)
        for episode in [*played[3:], None]:
            arrivals.put(episode)

    def stream() -> Iterator[list[Episode]]:
        while True:
            try:
                episode = arrivals.get_nowait()
            except queue.Empty:
                yield []
                continue
            if episode is None:
                return
            yield [episode]

    feeder = threading.Thread(target=feed)
    feeder.start()
    finished = []
    for episode in Scheduler(engine(), view()).play(stream()):
        finished.append(episode)
        if len(finished) == 3:
            assert {id(one) for one in finished} == {id(one) for one in played[:3]}
            first_half.set()
    feeder.join()
    assert len(finished) == 8 and [token_ids for token_ids, _ in tokens(played)] == [token_ids for token_ids, _ in expected]


@pytest.mark.slow
def test_a_turn_in_progress_can_be_seen() -> None:
    """What is seen grows chunk by chunk and is the beginning of the turn that the episode gets."""
    (episode,) = fresh(1)
    scheduler = Scheduler(engine(), view())
    scheduler.submit([episode])
    seen: list[tuple[int, list[int]]] = []
    while not scheduler.idle:
        scheduler.step()
        if written := scheduler.written(episode)[0]:
            seen.append((len(episode.turns), written))
    assert len(seen) >= len(episode.turns)
    for number, written in seen:
        turn = episode.turns[number]
        assert episode.token_ids[turn.start : turn.start + len(written)] == written
    assert scheduler.written(episode) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_cancelled_episode_leaves_the_others_alone(steps: int) -> None:
    """One is cancelled in its slot, one in the queue; the others' tokens and log-probabilities are the same bits."""
    expected, played = undisturbed(4), fresh(6)
    scheduler = Scheduler(engine(), view())
    for episode in played:
        scheduler.submit([episode])
    finished = [episode for _ in range(steps) for episode in scheduler.step()]
    scheduler.cancel(played[1])
    scheduler.cancel(played[5])
    while not scheduler.idle:
        finished += scheduler.step()
    assert sorted(played.index(episode) for episode in finished) == [0, 2, 3, 4]
    assert not played[1].finished and not played[5].turns
    assert [tokens(played)[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]


@pytest.mark.slow
def test_an_idle_scheduler_keeps_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a caller who wanted no more of a stream; and what lies in the cache from before is not seen."""
    create, created = sampler.create_state, []
    monkeypatch.setattr(sampler, "create_state", lambda *args, **sizes: created.append(sizes) or create(*args, **sizes))
    expected, played = undisturbed(4), fresh(4)
    created.clear()
    scheduler = Scheduler(engine(), view())
    next(scheduler.play([episode] for episode in fresh(6)))
    assert scheduler.idle
    with pytest.raises(RuntimeError, match="other episodes"):
        for _ in scheduler.play([episode] for episode in fresh(2)):
            list(scheduler.play([]))
    list(scheduler.play([episode] for episode in played))
    assert tokens(played) == expected and len(created) == 1
