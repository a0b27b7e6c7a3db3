"""The examples of docs/extending.md work as printed."""

import re
from pathlib import Path

import pytest

from tests.kit.trajectories import make_trajectory
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.learning.rewards import RewardConfig, Rewards

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
