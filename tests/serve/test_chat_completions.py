"""The official client asks our server, and gets what the offline player answers, token by token."""

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.images import noise
from tests.kit.rollout import BLIND
from tests.kit.served import MODEL, Served, load, serving
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.processing.files import open_image, pixels_sha256
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.endpoint import data_url

PICTURE = noise(60, 50)
ASKED = "Which texture?"


@pytest.fixture(scope="module")
def player(checkpoint: Path) -> Player:
    return load(checkpoint)


@pytest.fixture(scope="module")
def served(player: Player) -> Iterator[Served]:
    with serving(player) as running:
        yield running


def messages(question: str = ASKED, seed: int = 0) -> Any:
    picture = {"type": "image_url", "image_url": {"url": data_url(noise(60, 50, seed=seed))}}
    return [
        {"role": "system", "content": PROTOCOLS["plain"].system},
        {"role": "user", "content": [picture, {"type": "text", "text": question}]},
    ]


def offline(player: Player, samples: list[tuple[str, int]], sampling: Sampling) -> list[Episode]:
    """Plays questions about pictures without a server, with a scheduler of its own."""
    plain = dataclasses.replace(player, protocol=PROTOCOLS["plain"], sampling=sampling)
    played = [plain.begin(Sample("question", question, (noise(60, 50, seed=seed),), "")) for question, seed in samples]
    assert len(list(plain.play([one] for one in played))) == len(played)
    return played


def of_turn(episode: Episode) -> tuple[list[int], list[float]]:
    (turn,) = episode.turns
    return episode.token_ids[turn.start : turn.end], episode.logprobs[turn.start : turn.end]  # type: ignore[return-value]


EXACT = {"return_token_ids": True}


@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0, 0.9, seed=7)], ids=["greedy", "sampled"])
def test_a_reply_is_the_players(player: Player, served: Served, sampling: Sampling) -> None:
    (expected,) = offline(player, [(ASKED, 0)], sampling)
    values: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    values |= {"model": MODEL, "messages": messages(), "logprobs": True, "extra_body": EXACT}
    reply = served.client.chat.completions.create(**values)
    (choice,), (token_ids, logprobs) = reply.choices, of_turn(expected)
    (turn,) = expected.turns
    assert reply.model_extra and choice.model_extra
    assert reply.model_extra["prompt_token_ids"] == expected.token_ids[: turn.start]
    assert choice.model_extra["token_ids"] == token_ids and choice.message.content == turn.text
    assert choice.logprobs and [one.logprob for one in choice.logprobs.content or ()] == logprobs
    assert choice.finish_reason == ("stop" if token_ids[-1] in expected.stop_ids else "length")
    assert reply.usage and reply.usage.prompt_tokens == turn.start and reply.usage.completion_tokens == len(token_ids)
    chunks = list(served.client.chat.completions.create(**values, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert len(deltas) > 3 and "".join(one.delta.content or "" for one in deltas) == turn.text
    assert [t for one in deltas for t in (one.model_extra or {}).get("token_ids", [])] == token_ids
    assert [t.logprob for one in deltas if one.logprobs for t in one.logprobs.content or ()] == logprobs
    assert deltas[-1].finish_reason == choice.finish_reason and chunks[-1].usage == reply.usage


@pytest.mark.parametrize("nested", [False, True])
def test_a_request_has_its_own_pixel_budget(checkpoint: Path, served: Served, nested: bool) -> None:
    """As a player that was loaded with it; vLLM's name for the place is known too."""
    pixels = {"max_pixels": 28 * 28 * 4, "min_pixels": 28 * 28}
    reply = served.client.chat.completions.create(
        model=MODEL,
        messages=messages(),
        max_tokens=1,
        extra_body={**EXACT, **({"mm_processor_kwargs": pixels} if nested else pixels)},
    )
    small = dataclasses.replace(Player.load(checkpoint, max_pixels=28 * 28 * 4), protocol=PROTOCOLS["plain"])
    expected = small.begin(Sample("question", ASKED, (PICTURE,), ""))
    assert reply.model_extra and reply.model_extra["prompt_token_ids"] == expected.token_ids
    assert expected.images[0].size == (56, 56)


def test_several_replies_are_the_members_of_a_group(player: Player, served: Served) -> None:
    plain = dataclasses.replace(player, protocol=PROTOCOLS["plain"], sampling=Sampling(1.0, seed=3))
    sample = Sample("case-7", ASKED, (PICTURE,), "")
    expected = [plain.begin(sample, member) for member in range(3)]
    list(plain.play([one] for one in expected))
    reply = served.client.chat.completions.create(
        model=MODEL, messages=messages(), temperature=1.0, seed=3, n=3, extra_body={**EXACT, "sample_id": "case-7"}
    )
    got = [choice.model_extra["token_ids"] for choice in reply.choices]  # type: ignore[index]
    assert got == [of_turn(one)[0] for one in expected] and len({*map(tuple, got)}) == 3
    assert reply.usage and reply.usage.completion_tokens == sum(map(len, got))


def test_a_reply_is_cut_by_its_tokens_or_a_stop_text(player: Player, served: Served) -> None:
    """A stop text ends the reply before it, the same with and without streaming, whatever chunks the tokens come in."""
    (expected,) = offline(player, [(ASKED, 0)], Sampling(1.0, seed=7))
    token_ids, _ = of_turn(expected)
    text, decode = expected.turns[0].text, player.processor.chat.decode
    values: dict[str, Any] = {"model": MODEL, "messages": messages(), "temperature": 1.0, "seed": 7, "extra_body": EXACT}
    short = served.client.chat.completions.create(**values, max_tokens=3).choices[0]
    assert short.model_extra and short.model_extra["token_ids"] == token_ids[:3] and short.finish_reason == "length"
    assert player.engine.limits.turn_tokens < 40
    long = served.client.chat.completions.create(**values, max_completion_tokens=40).choices[0]
    assert long.model_extra and long.model_extra["token_ids"][: len(token_ids)] == token_ids
    middle = decode(token_ids[: 2 * player.engine.config.chunk])
    stop = text[len(middle) - 1 : len(middle) + 2]  # begins in one chunk and ends in the next
    cut = served.client.chat.completions.create(**values, stop=["never so", stop]).choices[0]
    before = text[: text.index(stop)]
    assert cut.message.content == before and cut.finish_reason == "stop" and cut.model_extra
    count = next(n for n in range(len(token_ids)) if stop in decode(token_ids[:n]))
    assert cut.model_extra["token_ids"] == token_ids[:count]
    chunks = served.client.chat.completions.create(**values, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == before


@pytest.mark.slow
def test_clients_that_leave_change_nothing_for_the_others(player: Player) -> None:
    """Of 64 requests with pictures at once, half are cut off after their first tokens."""
    asked = [(f"{ASKED} {index}", index) for index in range(64)]
    expected = offline(player, asked, Sampling(1.0, seed=5))
    barrier = threading.Barrier(len(asked))

    def ask(index: int) -> list[int]:
        barrier.wait()
        question, seed = asked[index]
        chunks = served.client.chat.completions.create(
            model=MODEL,
            messages=messages(question, seed),
            temperature=1.0,
            seed=5,
            max_tokens=28,
            stream=True,
            extra_body=EXACT,
        )
        got: list[int] = []
        for chunk in chunks:
            got += (chunk.choices[0].model_extra or {}).get("token_ids", [])
            if index % 2 and got:
                chunks.close()
                break
        return got

    with serving(player) as served, ThreadPoolExecutor(len(asked)) as threads:
        replies = list(threads.map(ask, range(len(asked))))
        whole = [of_turn(one)[0] for one in expected]
        assert replies[::2] == whole[::2]
        cut = [(reply, turn) for reply, turn in zip(replies[1::2], whole[1::2], strict=True) if len(reply) < len(turn)]
        assert len(cut) > 16 and all(reply == turn[: len(reply)] for reply, turn in cut)
        while served.server.engine.seats:
            pass
        assert "vitar_episodes 0.0\n" in urllib3.request("GET", f"{served.url}/metrics").data.decode()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_before_its_turn_ends(player: Player, served: Served, stream: bool) -> None:
    """The engine waits after two chunks until the server has noticed, and then decodes one more at most."""
    values: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": ASKED}], "max_tokens": 60}
    values |= {"temperature": 1.0}
    completions = served.client.chat.completions
    seed = next(n for n in range(100) if completions.create(**values, seed=n).choices[0].finish_reason == "length")
    left, steps, step = threading.Event(), itertools.count(), player.scheduler.step
    player.scheduler.step = lambda: (next(steps) < 2 or left.wait(60)) and step()  # type: ignore[method-assign]
    try:
        sampled = player.engine.stats.sampled
        if stream:
            chunks = completions.create(**values, seed=seed, stream=True)
            next(chunk for chunk in chunks if chunk.choices[0].delta.content)
            chunks.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                completions.create(**values, seed=seed, timeout=1.0)
        while "vitar_episodes 0.0\n" not in urllib3.request("GET", f"{served.url}/metrics").data.decode():
            pass
        left.set()
        while served.server.engine.seats:
            pass
    finally:
        left.set()
        del player.scheduler.step
    assert 0 < player.engine.stats.sampled - sampled <= 3 * player.engine.config.chunk


def test_metrics_count_requests_tokens_and_times(player: Player) -> None:
    """In Prometheus' text format, by its own parser."""
    ask: dict[str, Any] = {"model": MODEL, "messages": messages(), "max_tokens": 2, "n": 2}
    with serving(player) as served:
        usage = served.client.chat.completions.create(**ask).usage
        with pytest.raises(openai.BadRequestError):
            served.client.chat.completions.create(**ask, temperature=3)
        text = urllib3.request("GET", f"{served.url}/metrics").data.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    path = "/v1/chat/completions"
    assert found["vitar_requests_total", path, "200"] == found["vitar_requests_total", path, "400"] == 1
    assert usage and found["vitar_tokens_total", "prompt"] == usage.prompt_tokens
    assert found["vitar_tokens_total", "completion"] == usage.completion_tokens
    assert found["vitar_request_seconds_count",] == found["vitar_first_token_seconds_count",] == 1
    assert 0 < found["vitar_first_token_seconds_sum",] <= found["vitar_request_seconds_sum",]
    assert (found["vitar_episodes",], found["vitar_slots",]) == (0, player.engine.config.slots)


@pytest.mark.slow
def test_an_episode_is_streamed_turn_by_turn(player: Player) -> None:
    blind = dataclasses.replace(player, protocol=BLIND, sampling=Sampling(1.0, seed=2))
    sample = next(
        Sample(f"case-{index}", ASKED, (PICTURE,), "")
        for index in range(40)
        if len(blind.finish(blind.begin(Sample(f"case-{index}", ASKED, (PICTURE,), ""))).images) > 1
    )
    expected = blind.finish(blind.begin(sample))
    asks: dict[str, Any] = {"protocol": "blind", "sample_id": sample.sample_id}
    values: dict[str, Any] = {"model": MODEL, "messages": messages()[1:], "temperature": 1.0, "seed": 2, "extra_body": asks}
    with serving(dataclasses.replace(player, protocols={"blind": BLIND})) as served:
        chunks = list(served.client.chat.completions.create(**values, stream=True))
        whole = served.client.chat.completions.create(**values)
    events = [chunk.model_extra["event"] for chunk in chunks if chunk.model_extra]
    turns = [event for event in events if event["type"] == "turn"]
    assert [event["text"] for event in turns] == [turn.text for turn in expected.turns]
    assert "".join(event["text"] for event in events if event["type"] == "text") == "".join(t.text for t in expected.turns)
    for event, turn in zip(turns, expected.turns, strict=True):
        assert event["boxes_original"] == [list(box) for box in turn.boxes_original]
        assert (event["image_url"] is None) == (turn.image is None)
        if turn.image is not None:
            assert pixels_sha256(open_image(event["image_url"])) == expected.images[turn.image].sha256
    end = {"type": "end", "predicted_answer": expected.predicted_answer, "end_reason": expected.end_reason}
    assert events[-1] == end and whole.choices[0].model_extra
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (expected.predicted_answer or "")
    assert whole.choices[0].message.content == (expected.predicted_answer or "")
    assert [event for event in whole.choices[0].model_extra["events"] if event["type"] != "text"] == [*turns, end]
    assert any(turn.image is not None for turn in expected.turns)
