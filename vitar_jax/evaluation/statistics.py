"""Confidence intervals and tests of differences.

Answers about the same patient or image are not independent. Resampling and sign flips therefore act on whole clusters.
"""

import statistics
from collections.abc import Hashable, Sequence

import numpy as np

Interval = tuple[float, float]
_AT_A_TIME = 1 << 22  # resampled clusters held in memory at a time


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's score interval of a proportion, (low, high) within [0, 1] (Wilson, 1927)."""
    from scipy.stats import binomtest  # takes half a second to import

    found = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Returns Student's interval of a mean, (low, high). If all values are equal, both ends equal that value.

    Raises:
      ValueError: If there are fewer than two values.
    """
    from scipy.stats import sem, t

    if len(values) < 2:
        raise ValueError(f"got {len(values)} values, expected at least 2")
    mean, error = statistics.fmean(values), float(sem(values))
    if error == 0:
        return mean, mean
    low, high = t.interval(confidence, len(values) - 1, mean, error)
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Returns the percentile bootstrap interval of the mean, resampling clusters (Efron and Tibshirani, 1993).

    Args:
      clusters: Cluster of each value.

    Returns:
      (low, high), or None for fewer than two clusters, whose spread is unknown.
    """
    totals, sizes = _by_cluster(values, clusters)
    n = len(totals)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    means = []
    while resamples > 0:
        drawn = rng.integers(n, size=(min(resamples, max(1, _AT_A_TIME // n)), n))
        means.append(totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
        resamples -= len(drawn)
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def score_interval(values: Sequence[float], clusters: Sequence[Hashable]) -> Interval | None:
    """Returns the 95 % interval of the mean of values from 0 to 1, or None for a single cluster with different values.

    Uses Wilson's interval if each cluster has one value, 0 or 1, or if all values are 0 or all are 1, where resampling would
    return an interval of width 0. In the second case, each cluster counts as one trial. Otherwise uses `bootstrap_interval`.
    """
    n = len(set(clusters))
    if values and (set(values) in ({0}, {1}) or (set(values) == {0, 1} and n == len(values))):
        return wilson_interval(round(n * sum(values) / len(values)), n)
    return bootstrap_interval(values, clusters)


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
    totals, _ = _by_cluster(differences, clusters)
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


def _by_cluster(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum and number of values of each cluster, in order of first occurrence."""
    place: dict[Hashable, int] = {}
    index = [place.setdefault(cluster, len(place)) for cluster in clusters]
    return np.bincount(index, weights=values, minlength=len(place)), np.bincount(index, minlength=len(place))
