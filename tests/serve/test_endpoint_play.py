"""An endpoint that returns token ids and log-probabilities gives the records of the model's own player."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kit.images import noise
from tests.kit.rollout import BLIND
from tests.kit.served import MODEL, Served, load, serving
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import EndpointError
from vitar_jax.rollout.endpoint_player import EndpointPlayer, Tokens
from vitar_jax.rollout.offline import Failure
from vitar_jax.rollout.player import Player
from vitar_jax.runtime.endpoint import ChatClient

SAMPLES = [Sample(f"case-{index}", f"Which texture is {index}?", (noise(60, 50, seed=index),), "A") for index in range(40)]


@pytest.fixture(scope="module")
def player(checkpoint: Path) -> Player:
    return dataclasses.replace(load(checkpoint), protocol=BLIND, sampling=Sampling(1.0, 0.9, seed=4))


@pytest.fixture(scope="module")
def served(player: Player) -> Iterator[Served]:
    with serving(player) as running:
        yield running


def remote(player: Player, served: Served, directory: Path) -> EndpointPlayer:
    request = {"temperature": 1.0, "top_p": 0.9, "seed": 4}
    client = ChatClient(f"{served.url}/v1", MODEL, directory / "replies.jsonl", request, retries=0)
    engine = player.engine
    tokens = Tokens(engine.processor, engine.limits, engine.banned_sha256)
    return EndpointPlayer(client, player.protocol, tokens=tokens)


@pytest.mark.slow
def test_records_are_exact(player: Player, served: Served, tmp_path: Path) -> None:
    """Tokens, positions, turns and images over several turns, with errors and tools; log-probabilities but for rounding."""
    local = dataclasses.replace(player)  # a scheduler of its own
    known = {one.sample.sample_id: local.record(one) for one in local.play([local.begin(sample)] for sample in SAMPLES)}
    looks = [sample for sample in SAMPLES if len(known[sample.sample_id].images) > 1]
    errors = [sample for sample in SAMPLES if any(turn.error for turn in known[sample.sample_id].turns)]
    chosen = [*looks[:3], *(sample for sample in errors if sample not in looks)][:6]
    assert looks and errors and max(len(known[sample.sample_id].turns) for sample in chosen) > 1
    there = remote(player, served, tmp_path)
    ended = list(there.play([there.begin(sample)] for sample in SAMPLES))
    assert [failure for failure in ended if isinstance(failure, Failure)] == []
    played = {episode.sample.sample_id: episode for episode in ended if isinstance(episode, Episode)}
    records = [there.record(played[sample.sample_id]) for sample in chosen]
    for record in records:
        ours = known[record.sample_id]
        assert record.to_json() | {"logprobs": ()} == ours.to_json() | {"logprobs": ()}
        # The server prefills earlier turns, which the player has decoded, so the last bits may differ.
        got, expected = (np.array([np.nan if p is None else p for p in one.logprobs]) for one in (record, ours))
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0)


def test_other_tokens_are_seen(player: Player, served: Served, tmp_path: Path) -> None:
    """Here a word is spelled in more tokens than a tokenizer makes of it."""
    there, chat = remote(player, served, tmp_path), player.processor.chat
    episode = there.begin(SAMPLES[0])
    place = next(i for i, token in enumerate(episode.token_ids) if chat.decode([token]).strip().isalpha() and i > 4)
    letters = [token for letter in chat.decode([episode.token_ids[place]]) for token in chat.text(letter)]
    assert len(letters) > 1
    episode.token_ids[place : place + 1] = letters
    with pytest.raises(EndpointError, match="other_tokens"):
        there.finish(episode)


def test_a_checkpoint_gives_the_tokenizer(checkpoint: Path, player: Player, served: Served, tmp_path: Path) -> None:
    """And limits and banned tokens, as its player has them; the weights are the server's."""
    there = EndpointPlayer.open(f"{served.url}/v1", MODEL, tmp_path, protocol="plain", checkpoint=str(checkpoint))
    local = Player.load(checkpoint, protocol="plain")
    assert there.tokens and there.tokens.limits == local.engine.limits
    plain = dataclasses.replace(player, protocol=local.protocol, sampling=local.sampling)
    expected = plain.record(plain.finish(plain.begin(SAMPLES[0])))
    record = there.record(there.finish(there.begin(SAMPLES[0])))
    assert record.to_json() | {"logprobs": ()} == expected.to_json() | {"logprobs": ()} and record.turns
    assert there.settings["limits"] == dataclasses.asdict(local.engine.limits)
