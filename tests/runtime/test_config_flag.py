"""The flag --config: files from any directory, keys with defaults, errors in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from tests.kit.files import write_files
from tests.kit.processes import ROOT
from tests.kit.recipes import CONFIGS, load_config
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.runtime import config_flag

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


class Command:
    """Reads command lines as `cli.run` does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, default: str | None = None):
        self.monkeypatch, self.values = monkeypatch, flags.FlagValues()
        self.holder = config_flag.define(Recipe, "", default=default, values=self.values)

    def read(self, *words: str) -> Any:
        argv = ["train", *words]
        self.monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
        argv = config_flag.arguments(argv, self.values)
        try:
            self.values(argv)
        except (AttributeError, KeyError) as error:
            raise ConfigError(config_flag.wrong_key(argv, self.values)) from error
        return self.holder.value


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_flags_change_keys_that_a_file_leaves_out(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    stage = load_config(file.stem).schedule[-1]
    key = f"stages.{stage}.optimizer"
    changes = [f"--config.{key}.second_moment=factored", "--config.loader_threads=7"]
    config = Command(monkeypatch).read(f"--config={file}", *changes)
    assert config.stages[stage].optimizer.second_moment == "factored" and config.loader_threads == 7
    with pytest.raises(AttributeError):
        config.loader_thread = 1
    assert json.loads(config.to_json())["loader_threads"] == 7


def test_flags_set_what_is_none_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the field's type: a tuple, and keys of their own."""
    words = ["--config.processor.image_mean=(0.1,0.2,0.3)", "--config.stages.sft.lora={'rank': 8, 'alpha': 16.0}"]
    recipe = Recipe.from_config(Command(monkeypatch).read(f"--config={QUICKSTART}", *words))
    lora = recipe.stages["sft"].lora
    assert recipe.processor.image_mean == (0.1, 0.2, 0.3) and lora is not None and lora.rank == 8
    assert recipe.stages["grpo"].lora is None


def test_a_default_is_a_file_that_flags_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Command(monkeypatch, default=QUICKSTART).read("--config.seed=5").seed == 5
    smoke = ROOT / "configs" / "quickstart_smoke.py"
    assert Command(monkeypatch, default=QUICKSTART).read(f"--config={smoke}").evaluation_samples == 64
    assert Command(monkeypatch).read() is None


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config=nowhere.py"], "nowhere.py: no such file"),
        (["--config=nowhere.toml"], "--config=nowhere.toml: expected a Python file"),
        (["--config=breaks.py"], "breaks.py: ZeroDivisionError: division by zero"),
        (["--config=empty.py"], "empty.py has no 'get_config'"),
        (["--config=raises.py"], "raises.py: get_config() raised KeyError: 'x'"),
        (["--config=plain.py"], "plain.py: get_config() returned dict, expected ml_collections.ConfigDict"),
        ([f"--config={QUICKSTART}", "--config.stages.stf.steps=3"], "config.stages has no key 'stf', did you mean sft?"),
        ([f"--config={QUICKSTART}", "--config.sedd=3"], "config has no key 'sedd', did you mean seed?"),
        ([f"--config={QUICKSTART}", "--config.seed.x=3"], "config.seed is 0 and has no keys"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "breaks.py": "1 / 0",
        "empty.py": "",
        "raises.py": "def get_config(): return {}['x']",
        "plain.py": "def get_config(): return {}",
    }
    write_files(tmp_path, files)
    with pytest.raises(ConfigError) as caught:
        Command(monkeypatch).read(*words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
