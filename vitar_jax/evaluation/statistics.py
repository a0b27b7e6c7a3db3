"""Confidence intervals and tests of differences.

Answers about the same patient or image are not independent. Intervals and sign flips therefore act on whole clusters.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

Interval = tuple[float, float]
_AT_A_TIME = 1 << 22  # resampled clusters held in memory at a time


def score_interval(values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval | None:
    """Returns the interval of the mean of values from 0 to 1, (low, high) within [0, 1].

    This is Clopper and Pearson's interval (1934) with an effective number of independent values (Korn and Graubard, Survey
    Methodology 24, 1998). The variance over clusters gives that number, and Student's quantile reduces it. If all values are
    equal, they do not show how clusters correlate. Each cluster then counts as one value, or as fewer if sizes differ.

    Args:
      clusters: Cluster of each value.

    Returns:
      None without values, and for a single cluster with values other than all 0 or all 1, whose spread is unknown.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    if not values:
        return None
    x, index = np.asarray(values, float), _indices(clusters)
    n, k, mean = len(x), index.max() + 1, float(x.mean())
    if k == 1 and set(values) not in ({0}, {1}):
        return None
    tail = (1 - confidence) / 2
    if np.ptp(x) < 1e-12:  # equal up to rounding
        effective = n / _kish_effect(index)
    elif k == n and set(values) == {0, 1}:
        effective = n  # independent trials
    else:
        effective = mean * (1 - mean) / _variance(x, index) * (ndtri(tail) / stdtrit(k - 1, tail)) ** 2
    right, wrong = mean * effective, (1 - mean) * effective
    low = betaincinv(right, wrong + 1, tail) if mean > 0 else 0.0
    high = betaincinv(right + 1, wrong, 1 - tail) if mean < 1 else 1.0
    return min(float(low), mean), max(float(high), mean)  # the inverse is inexact for means near 0 and 1


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    low: float = -math.inf,
    high: float = math.inf,
    confidence: float = 0.95,
) -> Interval | None:
    """Returns the interval of the mean of numbers: Student's, with the standard error over clusters.

    It is too narrow for skewed numbers of few clusters: of gamma-distributed ones in 5 clusters, it covers 91 % of means.

    Args:
      clusters: Cluster of each value.
      low, high: Bounds of the numbers.

    Returns:
      (low, high) within the bounds, or None for fewer than two clusters, whose spread is unknown.
    """
    from scipy.special import stdtrit

    x, index = np.asarray(values, float), _indices(clusters)
    k = len(set(clusters))
    if k < 2:
        return None
    reach = stdtrit(k - 1, (1 + confidence) / 2) * math.sqrt(_variance(x, index))
    return max(low, float(x.mean() - reach)), min(high, float(x.mean() + reach))


def difference_interval(
    differences: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> Interval | None:
    """Returns the interval of the mean of paired differences from -1 to 1, (low, high) within [-1, 1].

    Combines the intervals of the mean gain and the mean loss and their correlation (MOVER: Newcombe, 1998; Zou and Donner,
    2008), so the interval has a width even if no pair differs.

    Args:
      clusters: Cluster of each difference.

    Returns:
      None for fewer than two clusters, whose spread is unknown.
    """
    x, index = np.asarray(differences, float), _indices(clusters)
    gains, losses = np.maximum(x, 0), np.maximum(-x, 0)
    intervals = [score_interval(part.tolist(), clusters, confidence) for part in (gains, losses)]
    if len(set(clusters)) < 2 or None in intervals:
        return None
    gain, loss = float(gains.mean()), float(losses.mean())
    (gain_low, gain_high), (loss_low, loss_high) = (interval for interval in intervals if interval)
    variances = [_jackknife_variance(part, index) for part in (gains, losses, x)]
    spread = 2 * math.sqrt(variances[0] * variances[1])
    correlation = (variances[0] + variances[1] - variances[2]) / spread if spread else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 + b**2 - 2 * correlation * a * b))

    low = gain - loss - reach(gain - gain_low, loss_high - loss)
    high = gain - loss + reach(gain_high - gain, loss - loss_low)
    return max(-1.0, low), min(1.0, high)


def pooled_influence(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns one number per sample, whose mean is the mean of all values and whose spread is that of this mean.

    The mean of values that are pooled over samples is a ratio of two sums, here linearised (Woodruff, 1971).

    Args:
      values: Values of each sample, of which at least one has some.
    """
    sums, counts = np.array([sum(some) for some in values], float), np.array([len(some) for some in values])
    mean = sums.sum() / counts.sum()
    return mean + (sums - mean * counts) / counts.mean()


def _variance(x: np.ndarray, index: np.ndarray) -> float:
    """Returns the variance of the mean of clustered values.

    This is the largest of three: that of independent values, the jackknife's, and that of the intraclass correlation (Kish,
    1965). The jackknife alone is too small where all errors are in a few clusters that happen to be small.
    """
    effect = 1 + _intraclass_correlation(x, index) * (_kish_effect(index) - 1)
    return max(_jackknife_variance(x, index), float(effect * x.var() / len(x)))


def _jackknife_variance(x: np.ndarray, index: np.ndarray) -> float:
    """Returns the variance of the mean of `x`, by leaving out one cluster at a time."""
    sums, sizes = np.bincount(index, x), np.bincount(index)
    without = (sums.sum() - sums) / (len(x) - sizes)
    return float((len(sums) - 1) * ((without - x.mean()) ** 2).mean())


def _kish_effect(index: np.ndarray) -> float:
    """Returns the design effect of clusters whose values are all equal: n over it is the effective number of clusters."""
    sizes = np.bincount(index)
    return float((sizes**2).sum() / sizes.sum())


def _intraclass_correlation(x: np.ndarray, index: np.ndarray) -> float:
    """Returns the intraclass correlation in [0, 1], by analysis of variance (Fisher).

    It is 0 if no cluster has two values, or if all values are equal.
    """
    sizes = np.bincount(index)
    n, k = len(x), len(sizes)
    if n == k:
        return 0.0
    means = np.bincount(index, x) / sizes
    between = float((sizes * (means - x.mean()) ** 2).sum()) / (k - 1)
    within = float(((x - means[index]) ** 2).sum()) / (n - k)
    typical = (n - _kish_effect(index)) / (k - 1)
    spread = between + (typical - 1) * within
    return min(1.0, max(0.0, (between - within) / spread)) if spread else 0.0


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test (1947) that two runs have equal accuracy.

    Assumes that samples are independent.

    Args:
      only_first: Number of samples that only the first run has right.
      only_second: Number of samples that only the second run has right.
    """
    from scipy.stats import binomtest

    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def sign_flip_p_value(
    differences: Sequence[float], clusters: Sequence[Hashable], *, permutations: int = 10_000, seed: int = 0
) -> float:
    """Returns the two-sided p-value of a paired permutation test that the mean difference is 0 (Fisher, 1935).

    Flips the signs of whole clusters. If there are at most `permutations` sign assignments, all are enumerated. Otherwise that
    many are sampled, and the observed assignment counts as one more.
    """
    totals = np.bincount(_indices(clusters), differences)
    totals = totals[totals != 0]
    n, found = len(totals), abs(totals.sum()) - 1e-9  # tolerates rounding in sums of the same terms
    if 2**n <= permutations:
        ways = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(abs((1 - 2 * ways) @ totals) >= found))
    rng = np.random.default_rng(seed)
    as_far, left = 0, permutations
    while left > 0:
        signs = 2 * rng.integers(2, size=(min(left, max(1, _AT_A_TIME // n)), n)) - 1
        as_far += int(np.sum(abs(signs @ totals) >= found))
        left -= len(signs)
    return (1 + as_far) / (1 + permutations)


def _indices(clusters: Sequence[Hashable]) -> np.ndarray:
    """Returns the number of each cluster, in order of first occurrence."""
    place: dict[Hashable, int] = {}
    return np.array([place.setdefault(cluster, len(place)) for cluster in clusters], int)
