"""Intervals and tests against scipy's, and what clusters do to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, permutation_test, ttest_1samp

from vitar_jax.evaluation.statistics import (
    bootstrap_interval,
    mcnemar_p_value,
    mean_interval,
    score_interval,
    sign_flip_p_value,
    wilson_interval,
)


@st.composite
def shares(draw):
    n = draw(st.integers(1, 20_000))
    return draw(st.integers(0, n)), n


@given(shares(), st.floats(0.5, 0.999))
def test_wilson_equals_scipys(share, confidence):
    successes, n = share
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(successes, n, confidence)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize("successes, n, confidence", [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_refuses_what_is_not_a_share(successes, n, confidence):
    with pytest.raises(ValueError):
        wilson_interval(successes, n, confidence)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=50), st.floats(0.5, 0.999))
def test_interval_of_a_mean_equals_scipys(values, confidence):
    low, high = mean_interval(values, confidence)
    theirs = ttest_1samp(values, 0).confidence_interval(confidence) if len(set(values)) > 1 else (values[0],) * 2
    assert (low, high) == pytest.approx(tuple(theirs), rel=1e-6, abs=1e-9)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="1 values have no spread"):
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


@given(st.integers(0, 500), st.integers(0, 500))
def test_mcnemar_is_the_binomial_test_of_what_differs(only_first, only_second):
    theirs = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(theirs, rel=1e-9)


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
