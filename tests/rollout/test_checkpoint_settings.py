"""What a checkpoint says of protocols: data is kept with it, and code is run only where the caller names its file."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.kit.recipes import load_config
from vitar_jax.episodes.actions import Answer
from vitar_jax.episodes.parsers import PARSERS
from vitar_jax.episodes.protocols import PROTOCOLS, Protocol
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.rollout.checkpoint import Checkpoint
from vitar_jax.rollout.checkpoint_settings import FILE, InferenceSettings, load_settings, save_settings
from vitar_jax.runtime import registry

PARSER = """
from vitar_jax.episodes.actions import Answer, ParsedTurn
from vitar_jax.episodes.parsers import PARSERS, Parser
from vitar_jax.episodes.protocols import Protocol

def whole(text):
    return ParsedTurn(None, None, Answer(text))

PARSERS["whole"] = Parser(whole)

mine = Protocol("mine", system="Look.", parser="whole")
"""


def stored(recipe: Recipe, default: str, directory: Path) -> InferenceSettings:
    processor = build.processor(recipe, directory)
    save_settings(directory, processor, recipe.limits, recipe.all_protocols, default)
    return load_settings(directory, build.model_config(recipe, processor))


def recipe_of(protocol: str) -> Recipe:
    config = load_config("quickstart")
    config.stages.sft.protocol = protocol
    return Recipe.from_config(config)


def test_a_file_of_data_is_kept_with_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "look.toml"
    path.write_text('system = "Look."\nmax_turns = 3\n')
    recipe = recipe_of(str(path))
    path.unlink()
    with pytest.raises(ConfigError, match="config.stages.sft: .*look.toml"):
        recipe_of(str(path))
    path.write_text('system = "Look."\nmax_turns = 3\n')
    settings = stored(recipe, str(path), tmp_path)
    path.unlink()
    assert settings.protocol() == Protocol(str(path), "Look.", max_turns=3)
    assert settings.protocol("vitar") == recipe_of("direct").all_protocols["vitar"] != PROTOCOLS["vitar"]


def test_a_file_of_code_is_run_where_it_is_named_and_only_there(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(PARSER)
    name = f"{path}:mine"
    with patch.dict(PARSERS):
        settings = stored(recipe_of(name), name, tmp_path)
        assert "whole" in PARSERS
    assert "whole" not in PARSERS  # as in a new process
    with pytest.raises(ConfigError, match="'whole'.*file.py:name"):
        settings.protocol()
    with pytest.raises(CheckpointError, match="own.py:mine"):
        dataclasses.replace(settings, protocols={}).protocol()
    assert settings.protocol("direct").system == "Look once."
    assert "whole" not in PARSERS
    with patch.dict(PARSERS):
        registry._import_file.cache_clear()
        assert settings.protocol(name).read("B").outcome == Answer("B")


def test_a_checkpoint_keeps_the_text_that_it_was_trained_with(tmp_path: Path) -> None:
    """Also where a protocol refers to a text of this package, which later versions may word differently."""
    system = "{json_turn} Zoom first."
    config = load_config("quickstart")
    config.protocols.vitar.system = system
    settings = stored(Recipe.from_config(config), "vitar", tmp_path)
    kept = settings.protocol()
    assert kept.system == dataclasses.replace(kept, system=system).system_text()
    assert kept.system.startswith("You are an assistant") and kept.system.endswith(" Zoom first.")


def test_tokens_that_a_protocol_allows_are_not_banned_in_its_run_and_checkpoint(tmp_path: Path) -> None:
    config = load_config("quickstart")
    config.protocols.vitar.allowed_tokens = ("<tool_call>",)
    recipe = Recipe.from_config(config)
    chats = build.processor(recipe, tmp_path).chat, stored(recipe, "vitar", tmp_path).processor.chat
    for chat in chats:
        assert chat.added_ids - chat.banned_ids == {chat.im_end, chat.token_id("<tool_call>")}
    config.protocols.vitar.allowed_tokens = ("<|im_start|>",)
    with pytest.raises(ConfigError, match=r"allowed_tokens: '<\|im_start\|>' is not one"):
        build.processor(Recipe.from_config(config), tmp_path)


def test_settings_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    """The system message was written out then, and is kept as it is."""
    old = {
        "name": "vitar",
        "system": "Write JSON. Zoom first.\nTools:\n{tools}",
        "tools": ["zoom", "mark"],
        "max_turns": 2,
        "parser": "json",
        "early_answer": True,
        "too_long_ends": False,
        "question": "{question}",
        "options": "{question}\nOptions:\n{options}",
        "option": "{letter} {text}",
        "option_separator": "\n",
        "observation": "Closer view.",
        "error": "Error: {message}",
        "frame": "model_input",
    }
    recipe = recipe_of("vitar")
    processor = build.processor(recipe, tmp_path)
    processor.save_pretrained(tmp_path)
    limits = {"tokens": 104, "turn_tokens": 28, "images": 2}
    written = {"default_protocol": "vitar", "protocols": {"vitar": old}, "limits": limits, "size_classes": [[1, 36], [4, 36]]}
    (tmp_path / FILE).write_text(json.dumps(written))
    settings = load_settings(tmp_path, build.model_config(recipe, processor))
    assert dataclasses.asdict(settings.protocol()) == old | {"tools": ("zoom", "mark"), "allowed_tokens": (), "max_calls": 1}
    assert settings.protocol().system_text().startswith("Write JSON. Zoom first.\nTools:\n{")
    assert dataclasses.asdict(settings.limits) == limits and not settings.options_only
    assert [(c.windows, c.window_patches) for c in settings.processor.size_classes] == [(1, 36), (4, 36)]
    (tmp_path / FILE).write_text(json.dumps(written | {"size_classes": 3, "protocol": "vitar"}))
    with pytest.raises(CheckpointError, match=f"{FILE}.*protocol: no such key"):
        load_settings(tmp_path, build.model_config(recipe, processor))


# Processors that do not fit the model


@pytest.fixture(scope="module")
def recipe_and_directory(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe, and a checkpoint of it without weights."""
    recipe, directory = recipe_of("vitar"), tmp_path_factory.mktemp("checkpoint")
    stored(recipe, "vitar", directory)
    config = build.model_config(recipe, build.processor(recipe, directory / "run"))
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    return recipe, directory


@pytest.mark.parametrize(
    "change, words",
    [
        ({"vocab_size": 410}, "tokenizer.json: got ids up to .*, expected less than vocab_size 410 of config.json"),
        ({"image_token_id": 3}, "image_token_id: got 3, expected"),
        ({"vision_end_token_id": 3}, "vision_end_token_id: got 3, expected"),
        ({"vision_config": {"temporal_patch_size": 1}}, "temporal_patch_size: got 1, expected 2"),
    ],
)
def test_a_processor_of_another_model_is_refused(
    change: dict, words: str, recipe_and_directory: tuple[Recipe, Path], tmp_path: Path
) -> None:
    """By evaluation, which reads it from the checkpoint, and by training, which may take it from elsewhere."""
    recipe, directory = recipe_and_directory
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    hf = json.loads((tmp_path / "config.json").read_text())
    hf |= change | {"vision_config": hf["vision_config"] | change.get("vision_config", {})}
    (tmp_path / "config.json").write_text(json.dumps(hf))
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path))}.*{words}"):
        Checkpoint.open(tmp_path)
    processor = build.processor(recipe, tmp_path / "run")
    trained = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, pretrained=str(tmp_path)))
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path))}.*{words}"):
        build.model_config(trained, processor)
