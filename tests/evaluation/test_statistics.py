"""Intervals and tests against published tables and scipy, and the effect of clusters on them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, norm, permutation_test, t

from vitar_jax.evaluation.statistics import (
    Interval,
    difference_interval,
    mcnemar_p_value,
    mean_interval,
    pooled_influence,
    score_interval,
    sign_flip_p_value,
)

Clusters = tuple[np.ndarray, np.ndarray]  # the cluster of each value, and the values


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("right, n", [(0, 1), (0, 20), (1, 29), (15, 148), (81, 263), (148, 148)])
def test_independent_answers_have_the_exact_interval(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(0.95, method="exact")
    assert score_interval([1] * right + [0] * (n - right), range(n)) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_effective_number_is_that_of_the_definition() -> None:
    """Korn and Graubard's, step by step with scipy.stats. For clusters of one size, the jackknife's variance is the largest."""
    k, clusters = 8, np.repeat(np.arange(8), 4)
    values = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0] * 2)
    share = values.mean()
    without = np.array([values[clusters != i].mean() for i in range(k)])
    variance = (k - 1) / k * ((without - share) ** 2).sum()
    assert variance > 1.5 * share * (1 - share) / len(values)
    effective = share * (1 - share) / variance * (norm.ppf(0.025) / t.ppf(0.025, k - 1)) ** 2
    right = share * effective
    expected = beta.ppf(0.025, right, effective - right + 1), beta.ppf(0.975, right + 1, effective - right)
    assert score_interval(values.tolist(), clusters.tolist()) == pytest.approx(expected, rel=1e-6)


def test_the_same_answer_several_times_tells_nothing_new() -> None:
    """Copies in clusters leave the interval nearly as wide as it was; taken for new answers they would make it narrow."""
    values = np.random.default_rng(0).integers(0, 2, 100).tolist()
    once = width(score_interval(values, range(100)))
    assert width(score_interval(values * 9, [*range(100)] * 9)) == pytest.approx(once, rel=0.03)
    assert width(score_interval(values * 9, range(900))) == pytest.approx(once / 3, rel=0.1)


def test_scores_that_are_all_alike() -> None:
    assert score_interval([1.0, 1.0, 1.0], "aab") == pytest.approx((0.025 ** (1 / 1.8), 1.0))  # of 9 / (4 + 1) clusters
    assert score_interval([1.0, 1.0], "ab") == pytest.approx((0.025 ** (1 / 2), 1.0))
    assert score_interval([0.0], "a") == pytest.approx((0.0, 0.975))
    assert score_interval([], "") is None
    assert score_interval([1.0, 0.0], "aa") is None and score_interval([0.5, 0.5], "aa") is None
    low, high = score_interval([0.5, 0.5], "ab") or (0, 0)
    assert 0 < low < 0.1 and 0.9 < high < 1


@settings(max_examples=40)
@example([(5e-324, 0), (1e-176, 1), (1e-176, 1)])
@example([(0.5, 0), (0.5 + 2e-12, 1), (0.5, 1)])
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=20))
def test_no_share_leaves_0_to_1(pairs: list[tuple[float, int]]) -> None:
    values, clusters = zip(*pairs, strict=True)
    if found := score_interval(values, clusters):
        assert 0 <= found[0] <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= found[1] <= 1


def draw(rng: np.random.Generator, sizes: str, k: int, share: float, correlation: float) -> Clusters:
    """Right and wrong answers of k clusters, whose shares of right answers are beta-distributed."""
    n = {
        "one": np.ones(k, int),
        "equal": np.full(k, 5),
        "varied": rng.integers(1, 12, k),
        "heavy-tailed": 1 + np.minimum(2 * rng.pareto(1.5, k), 60).astype(int),
    }[sizes]
    if correlation == 1:
        shares = (rng.random(k) < share).astype(float)
    elif correlation == 0 or share == 1:
        shares = np.full(k, share)
    else:
        shares = rng.beta(*(np.array([share, 1 - share]) * (1 - correlation) / correlation), k)
    clusters = np.repeat(np.arange(k), n)
    return clusters, (rng.random(len(clusters)) < shares[clusters]).astype(float)


def coverage(n: int, *case: Any) -> float:
    rng, held = np.random.default_rng(0), 0
    for _ in range(n):
        clusters, values = draw(rng, *case)
        found = score_interval(values.tolist(), clusters.tolist())
        assert found is None or 0 <= found[0] <= found[1] <= 1
        held += found is None or found[0] <= case[2] <= found[1]
    return held / n


SHARES = (0.5, 0.9, 0.98, 0.995, 1.0)
CASES = [
    (sizes, k, share, correlation)
    for sizes in ("one", "equal", "varied", "heavy-tailed")
    for k in (5, 10, 20, 50, 200)
    for correlation in ((0,) if sizes == "one" else (0, 0.1, 0.3, 0.7, 1))
    for share in SHARES
]
# Those in which the percentile bootstrap with Wilson's interval for equal answers covered least, and ones near its edge.
HARD = [
    ("one", 200, 0.98, 0),
    ("equal", 10, 0.9, 0.3),
    ("equal", 20, 0.98, 0.1),
    ("varied", 5, 0.5, 0.7),
    ("varied", 50, 0.98, 0.7),
    ("varied", 200, 0.995, 0.7),
    ("heavy-tailed", 50, 0.9, 1),
    ("heavy-tailed", 200, 0.98, 1),
]


@pytest.mark.parametrize("case", HARD)
def test_intervals_of_shares_cover(case: tuple[Any, ...]) -> None:
    assert coverage(400, *case) >= 0.94 - 0.024  # two standard errors of 400 draws


@pytest.mark.sweep
@pytest.mark.parametrize("case", CASES)
def test_intervals_of_any_share_cover(case: tuple[Any, ...]) -> None:
    assert coverage(4000, *case) >= 0.94 - 0.0075


# --- means and differences ------------------------------------------------------------------------


@pytest.mark.parametrize("n, quantile", [(2, 12.706), (5, 2.776), (11, 2.228)])
def test_interval_of_a_mean_has_students_quantile(n: int, quantile: float) -> None:
    """97.5 % quantiles of Student's distribution, as tables print them."""
    values = np.arange(n) * 0.5
    reach = quantile * values.std(ddof=1) / n**0.5
    found = mean_interval(values.tolist(), range(n))
    assert found == pytest.approx((values.mean() - reach, values.mean() + reach), abs=reach * 1e-3)
    copied = mean_interval(values.tolist() * 3, [*range(n)] * 3)
    assert copied == pytest.approx(found)  # copies tell nothing new
    assert mean_interval(values.tolist(), range(n), low=0.0, high=1.0) == (max(0.0, found[0]), min(1.0, found[1]))


def test_means_of_equal_values_and_of_one_cluster() -> None:
    assert mean_interval([0.5, 0.5, 0.5], "abc") == (0.5, 0.5)
    assert mean_interval([0.5, 0.7], "aa") is None and mean_interval([], "") is None


@pytest.mark.parametrize("sizes", ["equal", "varied", "heavy-tailed"])
@pytest.mark.parametrize("k", [3, 20])
def test_intervals_of_means_cover(sizes: str, k: int) -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        clusters, _ = draw(rng, sizes, k, 0.5, 0)
        values = rng.normal(size=k)[clusters] + rng.normal(size=len(clusters))
        low, high = mean_interval(values.tolist(), clusters.tolist()) or (-1, 1)
        held += low <= 0 <= high
    assert held / 400 >= 0.94 - 0.024


def test_differences_are_newcombes() -> None:
    """The interval combines the squared distances of both ends. Gains exclude losses, so they correlate."""
    gains, losses, n = 9, 3, 62
    differences = [1.0] * gains + [-1.0] * losses + [0.0] * (n - gains - losses)
    low, high = difference_interval(differences, range(n)) or (0, 0)
    (gl, gh), (ll, lh) = (binomtest(x, n).proportion_ci(0.95, method="exact") for x in (gains, losses))
    g, l_ = gains / n, losses / n
    twice = -2 * g * l_ / (g * (1 - g) * l_ * (1 - l_)) ** 0.5
    down, up = (a**2 + b**2 - twice * a * b for a, b in ((g - gl, lh - l_), (gh - g, l_ - ll)))
    assert (low, high) == pytest.approx((g - l_ - down**0.5, g - l_ + up**0.5))
    back = difference_interval([-d for d in differences], range(n))
    assert back == pytest.approx((-high, -low))


def test_runs_that_agree_everywhere_may_still_differ() -> None:
    low, high = difference_interval([0.0] * 20, range(20)) or (0, 0)
    assert -low == high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert difference_interval([1.0, 0.0], "aa") is None and difference_interval([0.0], "a") is None


DIFFERENCES = [
    (sizes, k, gain, loss, correlation)
    for sizes in ("one", "equal", "varied", "heavy-tailed")
    for k in (5, 10, 20, 50, 200)
    for correlation in ((0,) if sizes == "one" else (0, 0.3, 1))
    for gain, loss in ((0.0, 0.0), (0.01, 0.0), (0.02, 0.02), (0.1, 0.02), (0.3, 0.3), (0.5, 0.1))
]


def difference_coverage(draws: int, sizes: str, k: int, gain: float, loss: float, correlation: float) -> float:
    rng, held = np.random.default_rng(0), 0
    shares = np.array([gain, loss, 1 - gain - loss])
    for _ in range(draws):
        clusters, _ = draw(rng, sizes, k, 0.5, 0)
        if correlation == 1:
            own = np.eye(3)[rng.choice(3, k, p=shares)]
        elif correlation == 0:
            own = np.tile(shares, (k, 1))
        else:
            own = rng.dirichlet(np.maximum(shares, 1e-9) * (1 - correlation) / correlation, k)
        kinds = (rng.random((len(clusters), 1)) > own.cumsum(axis=1)[clusters][:, :2]).sum(axis=1)
        low, high = difference_interval(np.array([1.0, -1.0, 0.0])[kinds].tolist(), clusters.tolist()) or (-1, 1)
        assert -1 <= low <= high <= 1
        held += low - 1e-9 <= gain - loss <= high + 1e-9
    return held / draws


@pytest.mark.parametrize("case", [("one", 200, 0.02, 0.02, 0), ("varied", 10, 0.3, 0.3, 0.3), ("equal", 20, 0.1, 0.02, 0.3)])
def test_intervals_of_differences_cover(case: tuple[Any, ...]) -> None:
    assert difference_coverage(300, *case) >= 0.94 - 0.028


@pytest.mark.sweep
@pytest.mark.parametrize("case", DIFFERENCES)
def test_intervals_of_any_difference_cover(case: tuple[Any, ...]) -> None:
    assert difference_coverage(2000, *case) >= 0.94 - 0.011


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


def test_equal_numbers_have_an_interval_of_no_width() -> None:
    assert mean_interval([2.0] * 6, "aabbcc") == (2, 2)


def test_a_pooled_mean_is_linearised() -> None:
    """The mean is that of all values, and the standard error agrees with a bootstrap of samples."""
    rng = np.random.default_rng(0)
    values = [rng.random(rng.integers(0, 5)).tolist() for _ in range(200)]
    influence = pooled_influence(values)
    assert influence.mean() == pytest.approx(np.concatenate(values).mean())
    drawn = [np.concatenate([values[i] for i in rng.integers(200, size=200)]).mean() for _ in range(1000)]
    assert influence.std() / 200**0.5 == pytest.approx(np.std(drawn), rel=0.1)
