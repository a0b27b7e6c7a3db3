"""The examples of docs/extending.md work as printed, and commands of README and docs/ have flags and files that exist."""

import math
import re
import runpy
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from absl import flags

from tests.kit.trajectories import make_trajectory
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.learning.objective import Counts, Objective, TokenScores
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.learning.sft import sft_loss

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A folder with the Python examples of the page, under the names in their first lines."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    return tmp_path


def test_the_data_set_reads_a_table(examples: Path) -> None:
    (examples / "train.csv").write_text("id,image,question,answer\na,1.png,Which side?,left\n")
    source = load_source(SourceConfig(f"{examples}/cases.py:cases", options={"directory": examples}))
    assert len(source) == 1
    sample = source[0]
    assert (sample.sample_id, sample.question, sample.answer) == ("a", "Which side?", "left")
    assert sample.images == (f"{examples}/1.png",)


def test_the_reward_adds_its_weighted_parts(examples: Path) -> None:
    config = RewardConfig(f"{examples}/brevity.py:brevity", {"short": 0.1, "one_look": 0.2})
    scored, failure = Rewards({"mine": config})(make_trajectory())
    assert failure is None and scored.reward == pytest.approx(0.3)


def test_the_objective_without_focus_is_supervised_fine_tuning(examples: Path) -> None:
    found = Objective.kind(f"{examples}/focal.py:Focal")
    logprobs, mask = jnp.log(jnp.array([0.9, 0.5, 0.1])), jnp.array([True, True, False])
    scores, counts = TokenScores(logprobs, jnp.zeros(3)), Counts(jnp.array(2), jnp.array(1))
    batch = SimpleNamespace(loss_mask=mask)
    plain, _ = found(name="plain", gamma=0.0).loss(scores, batch, counts)  # type: ignore[call-arg,arg-type]
    focal, _ = found(name="focal").loss(scores, batch, counts)  # type: ignore[arg-type]
    assert plain == pytest.approx(float(sft_loss(logprobs, mask)))
    assert focal == pytest.approx(-(0.01 * math.log(0.9) + 0.25 * math.log(0.5)) / 2, rel=1e-5)


def blocks() -> list[list[list[str]]]:
    """Returns the arguments of each `python -m`, by blocks of commands."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    found = [re.findall(r"python -m ([^\n]+)", block) for block in re.findall(r"(?:^    [^\n]*\n)+", text, re.MULTILINE)]
    return [[[w for w in shlex.split(line, comments=True) if "..." not in w] for line in block] for block in found if block]


def commands() -> list[list[str]]:
    """Returns the arguments of each command of ours, once."""
    found = (tuple(command) for block in blocks() for command in block if command[0].startswith("vitar_jax"))
    return [list(command) for command in dict.fromkeys(found)]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_has_flags_and_files_that_exist(words: list[str]) -> None:
    module, *arguments = words
    is_package = find_spec(module).submodule_search_locations  # type: ignore[union-attr]
    before = set(flags.FLAGS)
    import_module(f"{module}.__main__" if is_package else module).define_flags()
    known = set(flags.FLAGS)
    for name in known - before:
        delattr(flags.FLAGS, name)
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        assert not argument.startswith("--") or name.partition(".")[0] in known, argument
        assert not value.startswith("configs/") or (ROOT / value).is_file(), argument


def test_commands_name_evaluations_that_are_there() -> None:
    """Those of the quickstart, or of the same block of commands."""
    quickstarts = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]().proof.order
    named = []
    for block in blocks():
        there = set(quickstarts)
        for module, *arguments in block:
            given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
            if module == "vitar_jax.evaluate" and "stage" in given:
                there.add("-".join(filter(None, [given["stage"], given.get("control")])))
            words = " ".join(arguments)
            used = re.findall(r"runs/quickstart/evaluation/(\w[\w-]*)", words)
            used += [given["name"]] if "--workdir=runs/quickstart" in words and "name" in given else []
            assert set(used) <= there, words
            named += used
    assert len(named) >= 4
