"""Calibration of answer probabilities, and selective prediction: accuracy when improbable answers are withheld."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
COVERAGES = (0.5, 0.7, 0.8, 0.9, 1.0)


def expected_calibration_error(probabilities: Sequence[float], correct: Sequence[float], bins: int = BINS) -> float:
    """Returns the expected calibration error: the gap between probability and correctness, averaged over bins.

    Bins have equal width and are weighted by their number of answers: (0, 1/bins], ..., (1 - 1/bins, 1]. 0 falls into the
    first (Guo et al., 2017, equation 3).
    """
    confidence, right = np.asarray(probabilities, float), np.asarray(correct, float)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def risk_coverage(probabilities: Sequence[float], correct: Sequence[float]) -> np.ndarray:
    """Returns the risk of the k most probable answers, for each k from 1 to n (El-Yaniv and Wiener, 2010).

    Risk is the mean of 1 - correct. Ties in probability are averaged over all orders.
    """
    confidence, wrong = np.asarray(probabilities, float), 1 - np.asarray(correct, float)
    _, group = np.unique(-confidence, return_inverse=True)
    share = np.bincount(group, weights=wrong) / np.bincount(group)
    return np.cumsum(share[np.sort(group)]) / np.arange(1, len(wrong) + 1)


def calibration(probabilities: Sequence[float], correct: Sequence[float]) -> dict[str, Any]:
    """Returns all statistics of this module, as JSON.

    `aurc` is the risk averaged over all coverages (Geifman et al., 2019). `at_coverage` has, for each coverage, the score of
    that share of the most probable answers, and the lowest probability among them.
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
