"""A checkpoint is asked: from Python, about files and pictures, with options, in a conversation."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import vitar_jax
from tests.kit.images import noise
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import question_sample
from vitar_jax.errors import ConfigError, DataError, ImageError
from vitar_jax.models.attention import BACK_ENDS
from vitar_jax.processing.banned import banned_tokens, fingerprint
from vitar_jax.rollout import sampler
from vitar_jax.rollout.checkpoint_settings import FILE
from vitar_jax.rollout.player import Player


@pytest.fixture(scope="module")
def player(checkpoint: Path) -> Player:
    return vitar_jax.load_player(str(checkpoint), slots=2)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "0.png"
    noise(120, 100).save(path)
    return path


@pytest.mark.slow
def test_a_question_is_asked_about_a_file_or_a_picture(player: Player, picture: Path) -> None:
    """Greedy play does not depend on what the image came in; options get letters."""
    options = ["flat", "rows"]
    episode = player.ask(picture, "Which texture?", options)
    assert episode.finished and episode.sample.options == (("A", "flat"), ("B", "rows"))
    with Image.open(picture) as opened:
        again = player.ask([opened], "Which texture?", options)
    assert again.token_ids == episode.token_ids and again.turns == episode.turns
    assert not player.ask((), "Which texture?").images
    record = player.record(episode, policy_version=3)
    assert (record.stream, record.policy_version, record.token_ids) == ("on_policy", 3, tuple(episode.token_ids))
    chat, vocabulary = player.processor.chat, player.engine.banned.shape[0]
    assert record.banned_sha256 == fingerprint(banned_tokens(chat, vocabulary))


def test_a_protocol_that_is_named_unbans_its_tokens(checkpoint: Path, player: Player, tmp_path: Path) -> None:
    path = tmp_path / "calls.toml"
    path.write_text('system = "Look."\nallowed_tokens = ["<tool_call>"]\n')
    calls = Player.load(checkpoint, protocol=str(path), slots=1)
    token = calls.processor.chat.token_id("<tool_call>")
    assert np.flatnonzero(calls.engine.banned != player.engine.banned).tolist() == [token]
    assert calls.settings["protocol"]["allowed_tokens"] == ("<tool_call>",)
    assert "allowed_tokens" not in player.settings["protocol"]  # as in settings of older versions


def test_a_protocol_that_is_named_has_room_for_the_images_of_its_turns(checkpoint: Path, player: Player) -> None:
    limits = player.engine.limits
    assert limits.images < PROTOCOLS["medeyes"].max_turns
    assert Player.load(checkpoint, protocol="medeyes", slots=1).engine.limits == dataclasses.replace(limits, images=5)
    assert Player.load(checkpoint, protocol="vitar", slots=1).engine.limits == limits


@pytest.mark.slow
def test_a_conversation_continues_on_the_same_cache(player: Player, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    player = dataclasses.replace(player, protocol=PROTOCOLS["plain"])
    player.start()
    monkeypatch.setattr(sampler, "create_state", None)
    episode = player.ask(picture, "Which texture?")
    turns = len(episode.turns)
    episode.ask("Where is it?")
    assert not episode.finished and len(player.finish(episode).turns) > turns


def test_weights_have_rollouts_type_from_the_start(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No leaf of another type exists on the way, and the weights are read once."""
    loaded = []
    from vitar_jax.rollout import checkpoint as module

    load = module.load_pretrained
    monkeypatch.setattr(module, "load_pretrained", lambda *args, **options: loaded.append(load(*args, **options)) or loaded[-1])
    player = Player.load(checkpoint, dtype="bfloat16", slots=1)
    assert not loaded
    player.start()
    player.start()
    (model,) = loaded
    assert {leaf.dtype.name for leaf in jax.tree.leaves((model, player.weights()))} == {"bfloat16"}


def test_what_cannot_be_asked_is_said(player: Player, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere.png"):
        player.ask("nowhere.png", "Which texture?")
    with pytest.raises(DataError, match="27 options"):
        player.ask((), "Which?", [""] * 27)
    with pytest.raises(ConfigError, match="cannot hash the weights"):
        _ = Player(player.engine, player.protocol, player.weights).settings
    with pytest.raises(AttributeError, match="load_players"):
        _ = vitar_jax.load_players  # type: ignore[attr-defined]


@pytest.mark.slow
def test_memory_follows_the_picture(
    player: Player, checkpoint: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image is one row of the tower, and the features of a call have no room for images that it does not have."""
    shapes: list[tuple[int, ...]] = []
    encode = sampler.encode

    def noted(weights: Any, buffer: jax.Array, pixels: np.ndarray, *more: Any) -> jax.Array:
        shapes.append((len(buffer), *pixels.shape))
        return encode(weights, buffer, pixels, *more)

    monkeypatch.setattr(sampler, "encode", noted)
    alone = Player.load(checkpoint, slots=1)
    episode = alone.ask(picture, "Which texture?", ["flat", "rows"])
    assert set(shapes) == {(32, 1, 36, 1176)}  # 9 features of the image and 9 of padding, as a power of two
    assert alone.engine.config.rows(1) == 1
    assert episode.token_ids == player.ask(picture, "Which texture?", ["flat", "rows"]).token_ids


def test_a_pixel_budget_can_be_lowered(checkpoint: Path, picture: Path) -> None:
    player = Player.load(checkpoint, slots=1, max_pixels=28 * 28 * 4)
    assert player.begin(question_sample(picture, "Which?")).images[0].grid_thw == (1, 2, 4)
    own = Player.load(checkpoint, slots=1)
    assert player.settings == {**own.settings, "max_pixels": 28 * 28 * 4}
    budget = own.processor.images.max_pixels
    for pixels in (budget + 1, 1):
        with pytest.raises(ConfigError, match=f"max_pixels: got {pixels}, expected at "):
            Player.load(checkpoint, max_pixels=pixels)


def test_the_tokens_that_end_a_turn_can_be_replaced(checkpoint: Path, tmp_path: Path) -> None:
    """Somebody else's checkpoint has a list of its own, which the argument replaces: with others, or with none."""
    chat = Player.load(checkpoint, slots=1).processor.chat
    end, start = chat.token_id("<|endoftext|>"), chat.token_id("<|im_start|>")
    foreign = Path(shutil.copytree(checkpoint, tmp_path / "foreign"))
    (foreign / "generation_config.json").write_text(json.dumps({"eos_token_id": [chat.im_end, end]}))
    for stop_tokens, expected in ((None, (end,)), (["<|im_start|>"], (start,)), ([], ())):
        player = Player.load(foreign, slots=1, stop_tokens=stop_tokens)
        assert player.processor.chat.stop_ids == expected == player.settings["sampling"]["stop_ids"]
        allowed = {token for token in (end, start) if not player.engine.banned[token]}
        assert allowed == set(expected)


def test_an_attention_back_end_is_chosen_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="^attention: splash runs on a tpu"):
        Player.load(checkpoint, attention="splash")
    with pytest.raises(ConfigError, match="^attention: got 'flash', expected one of xla, splash, cudnn"):
        Player.load(checkpoint, attention="flash")
    monkeypatch.setitem(BACK_ENDS, "mine", dataclasses.replace(BACK_ENDS["xla"], name="mine"))
    player = Player.load(checkpoint, slots=1, attention="mine")
    assert player.weights().config.attention == player.settings["attention"] == "mine"


@pytest.mark.slow
def test_a_question_without_options_is_noted_if_training_had_none(
    checkpoint: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    stored = json.loads((checkpoint / FILE).read_text())
    for known, noted in (({"options_only": True}, True), ({"options_only": False}, False), ({}, False)):
        folder = Path(shutil.copytree(checkpoint, tmp_path / str(len(known)), dirs_exist_ok=True))
        (folder / FILE).write_text(json.dumps({key: stored[key] for key in stored if key != "options_only"} | known))
        player = Player.load(folder, slots=1)
        assert bool(player.note(question_sample((), "Which?"))) == noted
        assert not player.note(question_sample((), "Which?", ["flat", "rows"]))
        if noted:
            with pytest.warns(UserWarning, match="trained on questions with options alone"):
                player.ask((), "Which texture?")
