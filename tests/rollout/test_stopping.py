"""The eos ids of a checkpoint end turns, where transformers' `generate` stops too."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.kit.recipes import load_config
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.rollout.checkpoint_settings import save_settings
from vitar_jax.rollout.player import Player

FILE = "generation_config.json"


def first_turn(player: Player) -> tuple[list[int], list[int]]:
    """The tokens of the prompt, and of the turn after it."""
    episode = player.ask((), "Which texture?")
    turn = episode.turns[0]
    return episode.token_ids[: turn.start], episode.token_ids[turn.start : turn.end]


@pytest.mark.slow
def test_transformers_stops_where_a_turn_ends(checkpoint: Path, tmp_path: Path) -> None:
    """In a checkpoint that was loaded and saved again, by the eos ids of its source."""
    source, again = tmp_path / "source", tmp_path / "again"
    shutil.copytree(checkpoint, source)
    player = Player.load(checkpoint, slots=2)
    prompt, written = first_turn(player)
    im_end = player.processor.chat.im_end
    place = next(i for i in range(3, len(written)) if written[i] not in (im_end, *written[:i]))
    eos = [im_end, written[place]]
    (source / FILE).write_text(json.dumps({"eos_token_id": eos, "pad_token_id": 0, "max_length": 999}))
    save_pretrained(load_pretrained(source), again)
    save_settings(again, player.processor, player.engine.limits, {"vitar": player.protocol}, "vitar")

    player = Player.load(again, slots=2)
    assert player.settings["sampling"]["stop_ids"] == (eos[1],)
    assert first_turn(player) == (prompt, written[: place + 1])
    theirs: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(again)
    ids = torch.tensor([prompt])
    suppress = np.flatnonzero(player.engine.banned).tolist()
    sampled = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), suppress_tokens=suppress, do_sample=False)
    assert sampled[0, len(prompt) :].tolist() == written[: place + 1]


def test_a_stop_token_is_recorded_and_not_banned(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    plain = Player.load(checkpoint, slots=2)
    end = plain.processor.chat.token_id("<|endoftext|>")
    config = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(config | {"eos_token_id": [end, plain.processor.chat.im_end, 10**6]}))
    player = Player.load(tmp_path, slots=2)
    assert np.flatnonzero(player.engine.banned != plain.engine.banned).tolist() == [end]
    episode = player.ask((), "Which texture?")
    assert player.record(episode).sampling.stop_ids == (end,)
    twin = plain.ask((), "Which texture?")
    assert plain.record(twin).sampling.stop_ids == ()


# In recipes


def recipe_of(checkpoint: Path, stop_tokens: tuple[str, ...] | None) -> Recipe:
    config = load_config("quickstart")
    config.model.pretrained = str(checkpoint)
    config.processor.stop_tokens = stop_tokens
    return Recipe.from_config(config)


@pytest.mark.parametrize(
    "eos, stop_tokens, stops",
    [
        (["<|im_end|>", "<|endoftext|>"], None, ["<|im_end|>", "<|endoftext|>"]),
        (["<|endoftext|>"], None, ["<|im_end|>", "<|endoftext|>"]),  # the markup's own token always ends a turn
        (["<|im_end|>", "<|endoftext|>"], (), ["<|im_end|>"]),
        (["<|im_end|>"], ("<|endoftext|>",), ["<|im_end|>", "<|endoftext|>"]),
        ([], None, ["<|im_end|>"]),
    ],
)
def test_a_recipe_takes_the_checkpoints_stops_or_its_own(
    eos: list[str], stop_tokens: tuple[str, ...] | None, stops: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "model")
    chat = Player.load(checkpoint, slots=2).processor.chat
    (tmp_path / "model" / FILE).write_text(json.dumps({"eos_token_id": [chat.token_id(token) for token in eos], "top_k": 9}))
    recipe = recipe_of(tmp_path / "model", stop_tokens)
    processor = build.processor(recipe, tmp_path)
    expected = [chat.token_id(token) for token in stops]
    assert [chat.im_end, *processor.chat.stop_ids] == expected
    generation = build.model_config(recipe, processor).generation
    assert generation.file is not None
    assert set(generation.stop_ids) == set(expected) and generation.file["top_k"] == 9


def test_a_model_with_random_weights_stops_at_the_end_of_a_message(checkpoint: Path) -> None:
    """As the recipe's tokenizer spells it, with the tokenizer's own padding."""
    chat = Player.load(checkpoint, slots=2).processor.chat
    written = json.loads((checkpoint / FILE).read_text())
    assert written == {"eos_token_id": chat.im_end, "pad_token_id": chat.token_id("<|endoftext|>")}
    assert written.items() <= json.loads((checkpoint / "config.json").read_text()).items()
