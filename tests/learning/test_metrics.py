"""What is logged of a rollout, and what an episode without a reward leaves behind."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from tests.kit.answered import BOX, GARBAGE, OUTSIDE, RIGHT, WRONG, play
from vitar_jax.episodes.actions import ErrorKind
from vitar_jax.learning.metrics import rollout_scalars
from vitar_jax.learning.rewards import FAILURES, Failure, RewardConfig, Rewards

REWARDS = Rewards({"vitar": RewardConfig("vitar")})
PLAYED = [(BOX, RIGHT), (OUTSIDE, WRONG), (GARBAGE, BOX), (RIGHT,)]


def scalars(failed: dict[int, Failure]) -> dict[str, float]:
    trajectories = [dataclasses.replace(REWARDS(play(*turns))[0], group_id="ab"[i // 2]) for i, turns in enumerate(PLAYED)]
    for index in failed:
        trajectories[index] = dataclasses.replace(trajectories[index], rewards=None)
    return rollout_scalars(trajectories, [failed.get(i) for i in range(len(PLAYED))], REWARDS.parts)


def test_a_rollout_in_numbers() -> None:
    found = scalars({})
    expected = {
        "reward/mean": (1.4 + 0.2 + 0.2 + 1.2) / 4,
        "reward/action": 0.4 / 4,
        "reward/terminate": 0.6 / 4,
        "reward/accuracy": 2 / 4,
        "reward/failed": 0,
        "rollout/action_success": 1 / 4,
        "rollout/answered": 3 / 4,
        "rollout/two_rounds": 3 / 4,
        "rollout/box_area": 56 * 56 / (112 * 84),  # of the one first turn whose tool ran
        "rollout/error/box_outside": 1 / 4,
        "rollout/error/bad_json": 1 / 4,
        "rollout/error/too_long": 0,
        "rollout/zero_variance_groups": 0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["rollout/tokens"] == np.mean([sum(play(*turns).loss_mask) for turns in PLAYED])


def test_an_episode_without_a_reward_counts_in_no_mean_of_rewards() -> None:
    found = scalars({0: "timeout", 3: "exception"})
    assert found["reward/mean"] == pytest.approx(0.2) and found["reward/accuracy"] == 0
    assert found["reward/failed"] == 2 / 4
    kinds = {kind: found[f"reward/failed/{kind}"] for kind in FAILURES}
    assert kinds == {"timeout": 1 / 4, "exception": 1 / 4, "wrong_parts": 0, "not_finite": 0}
    assert found["rollout/zero_variance_groups"] == 1  # one reward is left in each


def test_all_names_are_there_whatever_happens() -> None:
    """But for means of nothing."""
    whole, failed = scalars({}), scalars(dict.fromkeys(range(4), "exception"))
    assert whole.keys() - failed.keys() == {"reward/mean", *(f"reward/{part}" for part in REWARDS.parts)}
    assert {f"rollout/error/{kind}" for kind in get_args(ErrorKind)} < whole.keys()
