"""Intervals and tests against published tables and scipy, and the effect of clusters on them."""

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test

from vitar_jax.evaluation.statistics import (
    bootstrap_interval,
    mcnemar_p_value,
    mean_interval,
    score_interval,
    sign_flip_p_value,
    wilson_interval,
)


@pytest.mark.parametrize(
    "successes, n, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_as_published(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_a_share_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError):
        wilson_interval(0, 0)


@pytest.mark.parametrize("n, quantile", [(2, 12.706), (5, 2.776), (11, 2.228)])
def test_interval_of_a_mean_has_students_quantile(n: int, quantile: float) -> None:
    """97.5 % quantiles of Student's distribution, as tables print them."""
    values = np.arange(n) * 0.5
    reach = quantile * values.std(ddof=1) / n**0.5
    assert mean_interval(values.tolist()) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=reach * 1e-3)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="got 1 values"):
        mean_interval([0.5])


# --- bootstrap ------------------------------------------------------------------------------------


def width(interval):
    assert interval is not None
    return interval[1] - interval[0]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_without_clusters_it_is_scipys_bootstrap(confidence):
    values = np.random.default_rng(0).beta(0.3, 0.2, 400)
    theirs = bootstrap(
        (values,), np.mean, confidence_level=confidence, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_interval(values.tolist(), range(400), confidence=confidence, resamples=20_000)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03 * width(ours))


def test_the_same_record_several_times_tells_nothing_new():
    """Copies in clusters leave the interval as wide as it was; taken for new records they would make it narrow."""
    values = np.random.default_rng(0).integers(0, 2, 100).tolist()
    once = bootstrap_interval(values, range(100))
    copied, clusters = values * 9, [*range(100)] * 9
    assert bootstrap_interval(copied, clusters) == pytest.approx(once)
    assert width(bootstrap_interval(copied, range(900))) == pytest.approx(width(once) / 3, rel=0.1)


def test_clusters_of_different_size_cover_the_true_mean():
    """Simulated: of intervals of 90 %, about so many hold the mean of all clusters there are."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        sizes, rates = rng.integers(1, 6, 60), rng.beta(1, 1, 60)
        values = [float(rng.random() < rate) for size, rate in zip(sizes, rates, strict=True) for _ in range(size)]
        low, high = bootstrap_interval(values, np.repeat(range(60), sizes).tolist(), confidence=0.9, resamples=300, seed=seed)
        held += low <= 0.5 <= high
    assert 0.84 <= held / 300 <= 0.95


def test_an_interval_is_the_same_every_time_and_in_any_memory(monkeypatch):
    values = np.random.default_rng(0).random(50).tolist()
    first = bootstrap_interval(values, range(50))
    assert bootstrap_interval(values, range(50)) == first != bootstrap_interval(values, range(50), seed=1)
    monkeypatch.setattr("vitar_jax.evaluation.statistics._AT_A_TIME", 1000)
    assert bootstrap_interval(values, range(50)) == pytest.approx(first)


def test_scores_that_are_all_alike():
    assert bootstrap_interval([1.0, 0.0], ["a", "a"]) is None
    assert bootstrap_interval([1.0, 1.0, 1.0], "aab") == (1, 1)
    assert score_interval([1.0, 1.0, 1.0], "aab") == wilson_interval(2, 2)
    assert score_interval([0.0], "a") == wilson_interval(0, 1)
    assert score_interval([], "") is None
    assert score_interval([1.0, 0.5], "ab") == bootstrap_interval([1.0, 0.5], "ab")


# --- paired tests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("only_first, only_second, ways", [(9, 3, 2 * (1 + 12 + 66 + 220)), (0, 1, 2), (4, 4, 256), (0, 5, 2)])
def test_mcnemar_counts_ways_to_differ_as_much(only_first: int, only_second: int, ways: int) -> None:
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(ways / 2 ** (only_first + only_second))


def test_mcnemar_of_no_difference_is_one() -> None:
    assert mcnemar_p_value(0, 0) == 1


@pytest.mark.parametrize("n", [2, 5, 12])
def test_sign_flips_are_scipys_permutations_of_pairs(n):
    rng = np.random.default_rng(n)
    first, second = rng.random((2, n)).round(1)
    theirs = permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", vectorized=True
    ).pvalue
    assert sign_flip_p_value((first - second).tolist(), range(n)) == pytest.approx(min(1.0, theirs))


def test_drawn_sign_flips_come_near_to_all_of_them():
    differences = np.random.default_rng(0).normal(0.3, 1, 12).tolist()
    drawn = sign_flip_p_value(differences, range(12), permutations=4000)
    assert drawn == pytest.approx(sign_flip_p_value(differences, range(12)), abs=0.02)


def test_of_binary_answers_sign_flips_are_mcnemars_test():
    differences = [1.0] * 9 + [-1.0] * 3 + [0.0] * 50
    assert sign_flip_p_value(differences, range(62)) == pytest.approx(mcnemar_p_value(9, 3))


def test_what_comes_in_clusters_proves_less():
    differences = [1.0] * 8
    assert sign_flip_p_value(differences, range(8)) == pytest.approx(2 / 2**8)
    assert sign_flip_p_value(differences, "aaaabbbb") == 0.5
    assert sign_flip_p_value([0.0, 0.0], "ab") == 1
