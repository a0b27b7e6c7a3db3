"""How far a measured share may be from the true one."""

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

from scipy.special import stdtrit


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: (low, high) within [0, 1].

    The values p for which (successes / n - p)^2 <= z^2 p (1 - p) / n. Unlike the usual p +- z * error it
    stays inside [0, 1] and keeps its coverage for few trials and shares near 0 or 1 (Wilson 1927).

    Raises:
        ValueError: no trials, successes outside [0, n], or a confidence outside (0, 1).
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} trials is not a share")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # Exact at the ends, where the formula leaves rounding noise.
    low = 0.0 if successes == 0 else (middle - reach) / scale
    high = 1.0 if successes == n else (middle + reach) / scale
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean: (low, high).

    Raises:
        ValueError: fewer than two values.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values have no spread")
    mean = statistics.fmean(values)
    reach = stdtrit(n - 1, (1 + confidence) / 2) * statistics.stdev(values, mean) / math.sqrt(n)
    return mean - reach, mean + reach
