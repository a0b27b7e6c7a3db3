"""The bench of drafts plays the same episodes on both sides; no time is judged."""

from pathlib import Path

import pytest

from tests.kit import micro
from tests.kit.checkpoints import save_random
from vitar_jax.bench import drafted_rollout
from vitar_jax.experiment.recipe import Recipe


@pytest.mark.sweep
@pytest.mark.usefixtures("short_timings")
def test_both_sides_play_the_same_episodes(tmp_path: Path) -> None:
    config, said = micro.get_config(), []
    sizes = {"drafted": 3, "steps": 2, "rounds": 2}
    found = drafted_rollout.measure(Recipe.from_config(config), save_random(config, tmp_path), **sizes, say=said.append)
    assert found["episodes"] == 2 * 2 * 2 and found["differ"] == 0 and len(found["ratios"]) == 2
    assert 0 < found["passes"] <= found["passes_without"] < found["tokens"] and found["tokens_per_pass"] >= 1
    assert "0 of 8 episodes differ" in said[0]
