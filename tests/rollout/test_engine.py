"""Whole episodes: what is recorded is what the model gives, whatever else is played and in which slots."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from tests.kit import tiny
from tests.kit.rollout import (
    BLIND,
    DRAWN,
    LIMITS,
    PROCESSOR,
    SIZES,
    banned,
    engine,
    episodes,
    forked,
    model,
    run,
    sample,
    teacher_forced_difference,
    view,
)
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.processing.images import ImageProcessor, ProcessedImage
from vitar_jax.rollout import sampler
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.groups import fork_groups
from vitar_jax.rollout.weights import RolloutWeights

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """Products in full fp32, on every back end."""
    with jax.default_matmul_precision("highest"):
        yield


VITAR = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.", tools=("mark", "zoom"))


def difference(played: Sequence[Episode], temperature: float = 1.0) -> np.ndarray:
    return teacher_forced_difference(played, model(), PROCESSOR, temperature)


# What is recorded is what the model gives


def play(played: list[Episode], sampling: Sampling = DRAWN, *, slots: int = SIZES.slots, group_size: int = 1) -> list[Episode]:
    run(engine(slots), view(), played, sampling, group_size)
    return played


@pytest.mark.parametrize("sampling", [DRAWN, Sampling(temperature=0.6, top_p=0.8, seed=2), Sampling(temperature=0.0)])
def test_recorded_logprobs_equal_teacher_forced_ones(sampling: Sampling) -> None:
    played = play(episodes(6), sampling)
    assert all(episode.finished for episode in played)
    assert any(len(episode.images) > 1 for episode in played)  # tools have returned images on the way
    assert any(turn.error for episode in played for turn in episode.turns)
    assert difference(played, sampling.temperature or 1.0).max() <= TOLERANCE


@pytest.mark.parametrize("observation", ["This is the region.", "<feedback>{image}</feedback>"])
def test_a_zoom_of_the_real_protocol_is_seen_as_in_training(observation: str) -> None:
    protocol = dataclasses.replace(VITAR, observation=observation)
    played = [
        Episode(sample(0, sides=(60, 150)), protocol, PROCESSOR, LIMITS),
        Episode(sample(1, images=2, sides=(60, 100)), protocol, PROCESSOR, LIMITS),
    ]
    for member, tool in enumerate(("zoom", "mark")):
        turn = write_turn("spot", tool, box=[[2, 3, 50, 52]], image=member)
        played[member].add_turn([*PROCESSOR.chat.text(turn), PROCESSOR.chat.im_end], None, learn=False)
        assert played[member].turns[0].image == len(played[member].images) - 1
    play(played)
    assert [len(episode.turns) for episode in played] == [2, 2]
    assert difference(played).max() <= TOLERANCE


@pytest.mark.parametrize("program", ["cache", "vision_index", "position_ids"])
def test_a_broken_mechanism_shows(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of slot 1's cache is moved, tools' images are not seen, or observations stand too far away."""
    decode, prefill = sampler.decode, sampler.prefill

    def moved_cache(view, state, *rest, **options):
        keys = np.array(state.cache.keys[1])
        keys[1, :, 3] += 0.3
        cache = dataclasses.replace(state.cache, keys=(state.cache.keys[0], keys, *state.cache.keys[2:]))
        return decode(view, dataclasses.replace(state, cache=cache), *rest, **options)

    def moved_observation(view, state, features, *, starts, vision_index, position_ids, **others):
        later = (starts > 0)[:, None]
        if program == "vision_index":
            vision_index = np.where(later, -1, vision_index)
        else:
            position_ids = position_ids + later[..., None].astype(np.int32)
        read = dict(starts=starts, vision_index=vision_index, position_ids=position_ids)
        return prefill(view, state, features, **read, **others)

    if program == "cache":
        monkeypatch.setattr(sampler, "decode", moved_cache)
    else:
        monkeypatch.setattr(sampler, "prefill", moved_observation)
    played = play(episodes(4))
    differences = difference(played)
    assert differences.max() >= 100 * TOLERANCE
    if program == "cache":
        assert differences[1] >= 100 * TOLERANCE
        assert np.delete(differences, 1).max() <= TOLERANCE  # no slot sees another's cache


# Who else is being played does not matter


Record = tuple[str, int, tuple[int, ...], tuple[str | None, ...], str | None]


def records(played: Sequence[Episode]) -> dict[tuple[str, int], Record]:
    return {
        (e.sample.sample_id, e.member): (
            e.sample.sample_id,
            e.member,
            tuple(e.token_ids),
            tuple(turn.error and turn.error[0] for turn in e.turns),
            e.end_reason,
        )
        for e in played
    }


def logprobs(played: Sequence[Episode]) -> np.ndarray:
    ordered = sorted(played, key=lambda e: (e.sample.sample_id, e.member))
    return np.array([p for e in ordered for p in e.logprobs if p is not None])


def test_slots_and_order_do_not_matter() -> None:
    expected = play(episodes(10))
    for slots, order in (
        (1, np.arange(10)),
        (4, np.random.default_rng(0).permutation(10)),
        (16, np.arange(10)[::-1]),
    ):
        fresh = episodes(10)
        played = play([fresh[i] for i in order], slots=slots)
        assert records(played) == records(expected)
        np.testing.assert_allclose(logprobs(played), logprobs(expected), atol=TOLERANCE)
    assert len({record[2] for record in records(expected).values()}) == 10


@pytest.mark.parametrize(("workers", "overlap"), [(1, True), (8, True), (8, False)])
def test_threads_do_not_matter(workers: int, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are processed in any order in time, and others may wait for that; what is recorded has the same bits."""
    expected = play(episodes(8))
    process, waits = ImageProcessor.__call__, np.random.default_rng(workers)

    def slow(self: ImageProcessor, image: Image.Image) -> ProcessedImage:
        time.sleep(waits.uniform(0, 0.02))
        return process(self, image)

    monkeypatch.setattr(ImageProcessor, "__call__", slow)
    threaded = Engine(dataclasses.replace(SIZES, workers=workers, overlap=overlap), PROCESSOR, LIMITS, banned())
    played = list(threaded.pool.map(lambda index: Episode(sample(index), BLIND, PROCESSOR, LIMITS), range(8)))
    run(threaded, view(), played)
    assert [episode.sample.sample_id for episode in played] == [f"sample-{index}" for index in range(8)]
    assert records(played) == records(expected)
    assert [episode.logprobs for episode in played] == [episode.logprobs for episode in expected]
    assert any(len(episode.images) > 1 for episode in played)


@pytest.mark.parametrize("group_size", [2, 4])
def test_a_group_that_shares_its_prompt_plays_as_one_that_does_not(group_size: int) -> None:
    expected = play(forked(3, group_size))
    played = play(forked(3, group_size), group_size=group_size)
    assert records(played) == records(expected)
    np.testing.assert_allclose(logprobs(played), logprobs(expected), atol=TOLERANCE)
    for first in range(0, len(played), group_size):  # its members go their own ways
        members = played[first : first + group_size]
        assert len({tuple(member.token_ids) for member in members}) > 1
        assert [member.member for member in members] == list(range(group_size))
    assert difference(played[:4]).max() <= TOLERANCE


def test_a_sample_played_twice_in_a_step_gets_new_draws() -> None:
    leader = episodes(1)[0]
    played = [episode for group in fork_groups([leader, leader], 2, Counter()) for episode in group]
    run(engine(), view(), played, group_size=2)
    assert len({tuple(episode.token_ids) for episode in played}) == 4
    assert records(played[:2]) == records(play(forked(1, 2), group_size=2))


def test_members_that_were_built_separately_share_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """As forks do: the device is given the image once."""
    given: list[int] = []
    encode = sampler.encode

    def counted(view: RolloutWeights, buffer: jax.Array, pixels: np.ndarray, *rest: Any) -> jax.Array:
        given.append(int(pixels.any(axis=(1, 2)).sum()))
        return encode(view, buffer, pixels, *rest)

    expected = play([Episode(sample(0), BLIND, PROCESSOR, LIMITS, member=member) for member in range(2)], slots=1)
    monkeypatch.setattr(sampler, "encode", counted)
    played = play([Episode(sample(0), BLIND, PROCESSOR, LIMITS, member=member) for member in range(2)])
    assert records(played) == records(expected)
    assert given[0] == 1


@pytest.mark.parametrize("group_size", [3, 10])
def test_a_group_need_not_fit_the_slots(group_size: int) -> None:
    played = play(forked(3, group_size), group_size=group_size)
    assert records(played) == records(play(forked(3, group_size)))


def test_a_sample_without_images_is_played() -> None:
    played = [Episode(sample(5, images=0), PROTOCOLS["plain"], PROCESSOR, LIMITS), *episodes(1)]
    play(played)
    assert played[0].finished and not played[0].images
    assert difference(played).max() <= TOLERANCE
    play([Episode(sample(5, images=0), PROTOCOLS["plain"], PROCESSOR, LIMITS)])


# Ends


def test_banned_ids_are_never_drawn_and_turns_keep_their_budget() -> None:
    played = play(episodes(24), Sampling(temperature=2.0, seed=3))
    reasons = {episode.end_reason for episode in played}
    assert reasons <= {"answered", "turn_limit", "overflow"} and len(reasons) >= 2
    for episode in played:
        assert len(episode.token_ids) <= LIMITS.tokens
        for turn in episode.turns:
            written = episode.token_ids[turn.start : turn.end]
            assert not banned()[written].any()
            assert len(written) <= LIMITS.turn_tokens
            stopped = written[-1] == PROCESSOR.chat.im_end
            assert PROCESSOR.chat.im_end not in written[:-1]
            if not stopped:
                assert turn.error and turn.error[0] == "too_long"
    errors = {turn.error[0] for episode in played for turn in episode.turns if turn.error}
    assert {"too_long", "bad_json"} <= errors


def test_an_episode_ends_where_the_next_observation_has_no_room() -> None:
    tight = [Limits(tokens=tokens, turn_tokens=12) for tokens in range(60, 200, 12)]
    played = []
    for index, limits in enumerate(tight):
        played += [Episode(sample(index, sides=(40, 60)), BLIND, PROCESSOR, limits)]
    play(played)
    assert {"overflow"} < {episode.end_reason for episode in played}
    for episode in played:
        assert len(episode.token_ids) <= episode.limits.tokens
        assert sum(index >= 0 for index in episode.vision_index) == sum(
            PROCESSOR.tokens(image.grid_thw) for image in episode.images
        )


# Against Hugging Face's own generation


def test_greedy_turns_equal_hugging_faces() -> None:
    """Two hundred prompts with none to two images, played on four slots that are refilled all the time."""
    theirs, _ = tiny.pretrained()
    plain = dataclasses.replace(PROTOCOLS["plain"], system="Look.")
    samples = [sample(index, images=index % 3, sides=(30, 120)) for index in range(200)]
    played = play([Episode(s, plain, PROCESSOR, LIMITS) for s in samples], Sampling(temperature=0.0))
    stop = PROCESSOR.chat.im_end
    compared = 0
    for episode in played:
        turn = episode.turns[0]
        prompt = episode.token_ids[: turn.start]
        seen = [PROCESSOR.process(image.pixels) for image in episode.images]
        with torch.no_grad():
            output = theirs.generate(
                **tiny.hf_inputs(prompt, seen),
                do_sample=False,
                max_new_tokens=LIMITS.turn_tokens,
                eos_token_id=stop,
                pad_token_id=stop,
                suppress_tokens=np.flatnonzero(banned()).tolist(),
                output_scores=True,
                return_dict_in_generate=True,
            )
        expected = output.sequences[0, len(prompt) :].tolist()
        margins = [float(best[0] - best[1]) for best in (score[0].topk(2).values for score in output.scores)]
        clear = next((i for i, margin in enumerate(margins) if margin < 1e-3), len(margins))
        assert episode.token_ids[turn.start : turn.end][:clear] == expected[:clear]
        assert clear < len(margins) or len(expected) == turn.end - turn.start
        compared += clear
    assert compared > 1000
    assert len({tuple(e.token_ids[e.turns[0].start :]) for e in played}) > len(played) // 2
