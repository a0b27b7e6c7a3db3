"""What a checkpoint says of protocols: data is kept with it, and code is run only where the caller names its file."""

import dataclasses
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
from vitar_jax.rollout.checkpoint_settings import InferenceSettings, load_settings, save_settings
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
