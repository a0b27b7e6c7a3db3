"""Checkpoints and recipes that cannot make the masks that a protocol needs, named before weights are read."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit import micro_qwen3, tiny_qwen3, tiny_sa2va, vrt
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.rollout import player
from vitar_jax.rollout.player import Player


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that reads weights."""

    def read(*_: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(player, "load_rollout_weights", read)
    yield


@contextmanager
def refused(kind: type[Exception], message: str) -> Iterator[None]:
    with pytest.raises(kind, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def folder(directory: Path, *, without: str = "nothing", chat: Any = None, **changes: Any) -> Path:
    """Writes a tiny Sa2VA with its processor, whose tensors lack those that start `without`."""
    tensors = {name: tensor for name, tensor in tiny_sa2va.tensors().items() if not name.startswith(without)}
    dataclasses.replace(tiny_qwen3.processor(), chat=chat or vrt.chat()).save_pretrained(directory)
    return tiny_sa2va.write(directory, tensors, **changes)


@pytest.mark.usefixtures("unread")
def test_a_model_without_masks(tmp_path: Path) -> None:
    """Also one whose tokenizer has the tokens."""
    tiny_qwen3.pretrained()[0].save_pretrained(tmp_path)
    dataclasses.replace(tiny_qwen3.processor(), chat=vrt.chat()).save_pretrained(tmp_path)
    Player.load(tmp_path, protocol="vitar")
    with refused(ConfigError, "protocol vrt: got a model of the family qwen3_vl, expected one that makes masks"):
        Player.load(tmp_path, protocol="vrt")


@pytest.mark.usefixtures("unread")
def test_a_tokenizer_without_the_token(tmp_path: Path) -> None:
    with refused(CheckpointError, r"tokenizer.json: has no token \[SEG\]"):
        Player.load(folder(tmp_path, chat=tiny_qwen3.processor().chat), protocol="vrt")


@pytest.mark.usefixtures("unread")
def test_a_side_that_32_does_not_divide(tmp_path: Path) -> None:
    sizes = tiny_sa2va.config()["sam2_config"]
    sizes["prompt_encoder_config"]["image_size"] = 80
    with refused(CheckpointError, "image_size: got 80, expected a multiple of 32"):
        Player.load(folder(tmp_path, sam2_config=sizes), protocol="vrt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "what"),
    [("text_hidden_fcs.", "bridge"), ("grounding_encoder.sam2_model.sam_mask_decoder.", "mask decoder")],
)
def test_a_checkpoint_without_bridge_or_decoder(tmp_path: Path, start: str, what: str) -> None:
    """Known when the first play opens the files of the weights."""
    loaded = Player.load(folder(tmp_path, without=start), protocol="vrt", slots=1)
    with refused(CheckpointError, f"has no {what}"):
        loaded.start()


def test_a_recipe_whose_tokenizer_lacks_the_token(tmp_path: Path) -> None:
    config: Any = micro_qwen3.get_config()
    config.stages.grpo.protocol = "vrt"
    with refused(ConfigError, r"allowed_tokens: '\[SEG\]' is not one of the tokenizer's added tokens"):
        Run(Recipe.from_config(config), tmp_path)


def test_a_recipe_whose_model_makes_no_masks(tmp_path: Path) -> None:
    config: Any = micro_qwen3.get_config()
    config.processor.tokenizer = vrt.folder().name
    config.stages.grpo.protocol = "vrt"
    with refused(ConfigError, "protocol vrt: got a model of the family qwen3_vl"):
        Run(Recipe.from_config(config), tmp_path)
