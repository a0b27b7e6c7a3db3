"""Whether an answer's probability tells how often it is right, and what is won by keeping silent where it is low."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
COVERAGES = (0.5, 0.7, 0.8, 0.9, 1.0)


def expected_calibration_error(probabilities: Sequence[float], correct: Sequence[float], bins: int = BINS) -> float:
    """Mean gap between probability and correctness over bins of equal width, by their number of answers.

    Bins are (0, 1/bins], ..., (1 - 1/bins, 1], and 0 is in the first (Guo et al., 2017, equation 3).
    """
    confidence, right = np.asarray(probabilities, float), np.asarray(correct, float)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def risk_coverage(probabilities: Sequence[float], correct: Sequence[float]) -> np.ndarray:
    """Risk, the mean of 1 - correct, of the k most probable answers, for k = 1 to all of them (El-Yaniv and Wiener, 2010).

    Which of equally probable answers comes first is left to chance, and the mean of all orders is taken.
    """
    confidence, wrong = np.asarray(probabilities, float), 1 - np.asarray(correct, float)
    _, group = np.unique(-confidence, return_inverse=True)
    share = np.bincount(group, weights=wrong) / np.bincount(group)
    return np.cumsum(share[np.sort(group)]) / np.arange(1, len(wrong) + 1)


def calibration(probabilities: Sequence[float], correct: Sequence[float]) -> dict[str, Any]:
    """All numbers of this module, as JSON.

    `aurc` is the mean of the risk over all coverages (Geifman et al., 2019); `at_coverage` says how right the share of answers
    is that are most probable, and from which probability on they are given.
    """
    risk = risk_coverage(probabilities, correct)
    ranked = sorted(probabilities, reverse=True)
    kept = {coverage: math.ceil(coverage * len(ranked)) for coverage in COVERAGES}
    curve = np.unique(np.linspace(1, len(risk), min(len(risk), 50)).round().astype(int))
    return {
        "n": len(ranked),
        "ece": expected_calibration_error(probabilities, correct),
        "bins": BINS,
        "aurc": float(risk.mean()),
        "at_coverage": {str(c): {"score": float(1 - risk[k - 1]), "probability": ranked[k - 1]} for c, k in kept.items()},
        "risk_coverage": [[float(k / len(risk)), float(risk[k - 1])] for k in curve],
    }
