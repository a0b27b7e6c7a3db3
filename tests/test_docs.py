"""The examples of docs/extending.md work as printed."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from tests.kit.trajectories import make_trajectory
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.learning.objective import Counts, Objective, TokenScores
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.learning.sft import sft_loss

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


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
