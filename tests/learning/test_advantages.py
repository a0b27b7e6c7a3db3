"""Group advantages against Python's `statistics`."""

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitar_jax.learning.advantages import baseline_advantages, group_advantages, pooled_advantages, zero_variance_share

REWARDS = {"a": [1.4, 0.2, 0.4, 1.2], "b": [0.0, 0.2], "c": [1.2], "d": [0.4, 0.4, 0.4]}
EPISODES = [(group, reward) for group, rewards in REWARDS.items() for reward in rewards]


def expected(group: str, reward: float, *, scale: bool = True, epsilon: float = 1e-6) -> float:
    rewards = REWARDS[group]
    centred = reward - statistics.mean(rewards)
    if not scale or len(rewards) == 1:
        return centred
    return centred / (statistics.stdev(rewards) + epsilon)  # stdev is the unbiased one


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
@pytest.mark.parametrize("seed", range(4))
def test_advantages_equal_the_formula_in_any_order(scale: bool, epsilon: float, seed: int) -> None:
    episodes = random.Random(seed).sample(EPISODES, len(EPISODES))
    groups, rewards = zip(*episodes, strict=True)
    advantages = group_advantages(rewards, groups, scale=scale, epsilon=epsilon)
    assert advantages.dtype == np.float32
    wanted = [expected(*episode, scale=scale, epsilon=epsilon) for episode in episodes]
    np.testing.assert_allclose(advantages, wanted, rtol=1e-5, atol=1e-6)


def test_a_group_of_one_teaches_nothing() -> None:
    assert not group_advantages([0.7], ["a"]).any()


@given(
    st.floats(-1e6, 1e6), st.integers(1, 16), st.sampled_from([0.0, 1e-9, 1e-6, 1e-4]), st.sampled_from([0, 1]), st.booleans()
)
@example(0.1, 3, 0.0, 1, True)  # the mean of three times 0.1 is not 0.1
@example(0.7, 8, 0.0, 1, True)
def test_a_group_of_equals_teaches_nothing(reward: float, size: int, epsilon: float, ddof: int, scale: bool) -> None:
    rewards = [*[reward] * size, math.nan, 0.0, 1.0]
    groups = ["flat"] * (size + 1) + ["other"] * 2
    advantages = group_advantages(rewards, groups, epsilon=epsilon, ddof=ddof, scale=scale)
    assert not advantages[:-2].any() and np.isfinite(advantages).all() and advantages[-1] == -advantages[-2] > 0


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.sampled_from([0.0, 1e-6]), st.sampled_from([0, 1]))
@example([0.3, 0.1 + 0.2], 0.0, 1)  # equal up to rounding
@example([1.0, 1.0 + 2e-9], 0.0, 1)
def test_a_group_counts_as_flat_exactly_if_its_advantages_are_zero(rewards: list[float], epsilon: float, ddof: int) -> None:
    advantages = group_advantages(rewards, ["a"] * len(rewards), epsilon=epsilon, ddof=ddof)
    assert np.isfinite(advantages).all()
    assert advantages.any() == (zero_variance_share(rewards, ["a"] * len(rewards)) == 0)
    if advantages.any() and epsilon == 0:
        assert np.std(advantages, ddof=ddof) == pytest.approx(1, abs=1e-5)


def test_two_episodes_differ_by_the_square_root_of_two() -> None:
    # ddof 1: (1 - 0.5) / sqrt(0.5); with ddof 0 it would be 1
    np.testing.assert_allclose(group_advantages([1, 0], ["a", "a"], epsilon=0), [0.5**0.5, -(0.5**0.5)], rtol=1e-6)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 5)), min_size=1, max_size=20))
def test_advantages_of_a_group_sum_to_zero_and_keep_its_order(episodes: list[tuple[str, float]]) -> None:
    groups, rewards = zip(*episodes, strict=True)
    advantages = group_advantages(rewards, groups)
    assert np.isfinite(advantages).all()
    for group in set(groups):
        inside = np.array([g == group for g in groups])
        assert abs(advantages[inside].sum()) < 1e-4
        order = np.argsort(np.array(rewards)[inside], kind="stable")
        assert (np.diff(advantages[inside][order]) >= -1e-6).all()


def test_the_std_may_be_that_of_the_group_alone() -> None:
    advantages = group_advantages([1, 0, 0], ["a"] * 3, ddof=0)
    np.testing.assert_allclose(advantages, (np.array([1, 0, 0]) - 1 / 3) / statistics.pstdev([1, 0, 0]), rtol=1e-5)
    assert not group_advantages([0.7], ["a"], ddof=0).any()


def test_zero_variance_share() -> None:
    groups, rewards = zip(*EPISODES, strict=True)
    assert zero_variance_share(rewards, groups) == 0.5
    assert zero_variance_share([0.1 + 0.2, 0.3], ["a", "a"]) == 1  # equal but for rounding


def test_a_missing_reward_leaves_its_group() -> None:
    groups, rewards = ["a", "b", "a", "a", "b"], [1.0, math.nan, math.nan, 0.0, math.nan]
    np.testing.assert_array_equal(group_advantages(rewards, groups)[[1, 2, 4]], 0)
    np.testing.assert_array_equal(group_advantages(rewards, groups)[[0, 3]], group_advantages([1, 0], ["a", "a"]))
    assert zero_variance_share(rewards, groups) == 0.5  # nothing is learnt from b


@pytest.mark.parametrize("scale", [True, False])
def test_an_experts_advantage_by_the_policys_statistics_is_luffys(scale: bool) -> None:
    """As `compute_grpo_outcome_advantage_split` of LUFFY at 01f4ae0 returned it: groups of four, of equal rewards, of one."""
    policy, policy_ids = [1.0, 0.2, 0.0, 0.7, 0.5, 0.5, 0.5, 0.3], list("aaaabbbc")
    rewards, ids = [0.9, 0.9, 0.1, 1.0, 0.0, 0.8, 0.4], list("aaabbcc")
    published = {
        True: [0.929269627, 0.929269627, -0.819943789, 0.4999995, -0.4999995, 0.7999992, 0.3999996],
        False: [0.425, 0.425, -0.375, 0.5, -0.5, 0.8, 0.4],
    }
    found = baseline_advantages(rewards, ids, policy, policy_ids, scale=scale)
    assert found == pytest.approx(published[scale], rel=1e-6)


def test_an_experts_advantage_without_a_reward_on_either_side_is_zero() -> None:
    found = baseline_advantages([1.0, math.nan, 1.0], ["a", "b", "b"], [math.nan, 0.0, 1.0], ["a", "b", "b"])
    assert found.tolist()[:2] == [0, 0] and found[2] > 0.5
    assert baseline_advantages([1.0], ["b"], [0.0, 1.0], ["b", "b"], std=2.0)[0] == pytest.approx(0.25)


def test_an_experts_advantage_may_be_that_among_all_experts() -> None:
    pool = [0.9, 0.1, 0.4, 1.0]
    found = pooled_advantages([0.9, math.nan, 0.1], pool)
    std = statistics.stdev(pool) + 1e-6
    assert found == pytest.approx([(0.9 - 0.6) / std, 0, (0.1 - 0.6) / std], rel=1e-6)
    assert pooled_advantages([0.9], pool, scale=False) == pytest.approx([0.3])
    assert not pooled_advantages([0.3, 0.3], [0.1 + 0.2, 0.3]).any()
