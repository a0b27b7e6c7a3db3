"""Both sides of the rollout bench do the same work, and the peer is right. No time is judged."""

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.recipes import load_config
from vitar_jax.bench import rollout
from vitar_jax.bench.generate_loop import GenerateLoop
from vitar_jax.bench.pairs import Disagreement
from vitar_jax.bench.rates import copy_rate
from vitar_jax.bench.rollout import Ours, compare, measure
from vitar_jax.bench.scripted import RolloutCase, Script, rollout_cases
from vitar_jax.bench.torch_loop import Loop
from vitar_jax.bench.torch_peer import save_random_weights
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_timings")]



def tiny(config: Any) -> RolloutCase:
    """The first case of a recipe, with few episodes."""
    case = rollout_cases(Recipe.from_config(config))["quickstart"]
    rollout = dataclasses.replace(case.recipe.rollout, slots=8)
    return dataclasses.replace(
        case, name="tiny", samples=4, group_size=4, recipe=dataclasses.replace(case.recipe, rollout=rollout)
    )


QUICKSTARTS = {"qwen2_5_vl": "quickstart", "qwen3_vl": "quickstart_qwen3"}
CASES = {family: tiny(load_config(name)) for family, name in QUICKSTARTS.items()}
TINY = CASES["qwen2_5_vl"]


@cache
def sides(family: str = "qwen2_5_vl") -> tuple[Script, Ours, Loop, GenerateLoop]:
    with tempfile.TemporaryDirectory() as directory:
        script = Script.write(CASES[family], Path(directory))
        weights = Path(directory) / "model"
        save_random_weights(script.config, weights)
        loop = Loop(weights, script)
        return script, Ours(weights, script), loop, GenerateLoop(loop)


@pytest.mark.parametrize("family", CASES)
def test_both_sides_do_the_same_work(family: str) -> None:
    script, *players = sides(family)
    for player in players:
        groups = script.groups()
        player.play(groups)
        for leader, group in zip(script.leaders, groups, strict=True):
            for episode, lengths in zip(group, leader.lengths.tolist(), strict=True):
                first, last = episode.turns
                assert [first.end - first.start - 1, last.end - last.start] == lengths  # the first and what ends it
                assert len(episode.images) == 2 and first.image == 1 and episode.end_reason == "turn_limit"
        drawn = {tuple(episode.token_ids) for group in groups for episode in group}
        assert len(drawn) == script.episodes
    assert script.tokens == sum(leader.lengths.sum() for leader in script.leaders)


@pytest.mark.parametrize("family", CASES)
def test_the_peers_give_our_tokens_our_logprobs(family: str) -> None:
    script, ours, *peers = sides(family)
    for peer in peers:
        assert compare(script, ours, peer) < 1e-5


def test_a_generate_that_forgets_which_tokens_are_of_images_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are counted on without it; the features still go where they belong."""
    script, ours, _, peer = sides()
    generate = peer.model.generate
    monkeypatch.setattr(peer.model, "generate", lambda **inputs: generate(**inputs | {"mm_token_type_ids": None}))
    with pytest.raises(Disagreement, match="tiny log-probabilities"):
        compare(script, ours, peer)


def test_a_peer_that_sees_padding_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = Loop.bias

    def everything_before(self: Loop, attended: torch.Tensor) -> torch.Tensor:
        return bias(self, attended.flip(-1).cummax(-1).values.flip(-1))

    monkeypatch.setattr(Loop, "bias", everything_before)
    script, ours, peer, _ = sides()
    with pytest.raises(Disagreement, match="tiny log-probabilities"):
        compare(script, ours, peer)


def test_a_peer_without_deepstack_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    script, ours, peer, _ = sides("qwen3_vl")
    monkeypatch.setattr(peer.text, "_deepstack_process", lambda hidden_states, *_: hidden_states)
    with pytest.raises(Disagreement, match="tiny log-probabilities"):
        compare(script, ours, peer)


def test_decode_is_timed_beside_that_without_deepstack() -> None:
    script, ours, *_ = sides("qwen3_vl")
    counted = rollout.count(script, ours) | {"deepstack": rollout.deepstack_ratio(script, ours, rounds=1)}
    assert counted["deepstack"] > 0
    assert "decode takes 1.06 times as long as without DeepStack, target at most 1.05 MISSED" in rollout.counts_text(
        "tiny", counted | {"deepstack": 1.06}
    )


def test_models_of_the_recipes_family_play() -> None:
    for family, name in QUICKSTARTS.items():
        cases = rollout_cases(Recipe.from_config(load_config(name)))
        assert {"quickstart", "10m"} <= cases.keys()
        for case in cases.values():
            assert build.model_config(case.recipe).model_type == family


def test_measure() -> None:
    said: list[str] = []
    rows, counts = measure([TINY], rounds=1, try_compile=False, say=said.append)
    assert [(row.pair.name, row.pair.size, row.pair.items, row.pair.target) for row in rows] == [
        ("rollout, generate", "tiny", 16, 8.0),
        ("rollout, by hand", "tiny", 16, None),
    ]
    assert all(row.pair.peer_settings in ("sdpa", "eager") for row in rows)
    counted = counts["tiny"]
    assert sum(counted[kind] for kind in ("decode", "prefill", "vision", "tools", "host")) == pytest.approx(1)
    assert 0.3 < counted["occupancy"] <= 1 and counted["shared"] > 0
    assert said[0].startswith("tiny: 16 episodes (4 samples, groups of 4) in 8 slots") and "agree" in said[1]
    assert "tokens prefilled" in rollout.counts_text("tiny", counted) and "floor" not in rollout.counts_text("tiny", counted)


def test_the_bandwidth_floor() -> None:
    """Decode's least bytes, counted by hand for one episode."""
    script, ours, *_ = sides()
    (group, *_) = script.groups()
    ours.play([group])
    episode, text = group[0], script.config.text
    weights = sum(
        text.num_hidden_layers * part
        for part in (4 * 64 * 64 + 3 * 64, 3 * 64 * 192, 2 * 64)  # projections and biases, MLP, norms
    ) + 64 * (1 + text.vocab_size)
    before = sum(place for turn in episode.turns for place in range(turn.start, turn.end - 1))
    assert rollout.decode_bytes(ours.weights, [[episode]], steps=3) == 4 * (3 * weights + before * 2 * 2 * 64)
    assert copy_rate(2**16) > 0
