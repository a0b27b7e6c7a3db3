"""Calibration: against scipy's bins and curves worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binned_statistic

from vitar_jax.evaluation.calibration import calibration, expected_calibration_error, risk_coverage

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_over_scipys_bins(bins):
    rng = np.random.default_rng(0)
    probabilities = rng.random(1000)
    correct = np.floor(probabilities * bins) % 2  # neighbouring bins err to different sides
    means, counts = (
        binned_statistic(probabilities, [correct, probabilities], kind, bins, (0, 1)).statistic for kind in ("mean", "count")
    )
    expected = np.nansum(counts[0] / 1000 * abs(means[0] - means[1]))
    assert expected_calibration_error(probabilities.tolist(), correct.tolist(), bins) == pytest.approx(expected)


def test_ece_of_extremes():
    assert expected_calibration_error([1.0, 1.0, 0.0], [1, 1, 0]) == 0
    assert expected_calibration_error([1.0, 0.0], [0, 1]) == 1
    assert expected_calibration_error([0.7] * 10, [1] * 7 + [0] * 3) == pytest.approx(0, abs=1e-12)


def test_a_curve_by_hand():
    risk = risk_coverage([0.2, 0.9, 0.5, 0.7], [0, 1, 1, 0])
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    found = calibration([0.2, 0.9, 0.5, 0.7], [0, 1, 1, 0])
    assert found["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found["at_coverage"]["0.5"] == {"score": 0.5, "probability": 0.7}
    assert found["at_coverage"]["1.0"] == {"score": 0.5, "probability": 0.2}
    assert found["risk_coverage"] == [[k / 4, pytest.approx(r)] for k, r in enumerate(risk, start=1)]


def test_of_ties_it_is_the_mean_of_all_orders():
    probabilities, correct = [0.9, 0.5, 0.5, 0.5], [1.0, 0.0, 1.0, 1.0]
    orders = [[correct[0], *rest] for rest in itertools.permutations(correct[1:])]
    expected = np.mean([1 - np.cumsum(order) / np.arange(1, 5) for order in orders], axis=0)
    assert risk_coverage(probabilities, correct) == pytest.approx(expected)


@pytest.mark.slow
@given(ANSWERS, st.randoms())
def test_order_does_not_matter_and_all_answers_have_the_risk_of_all(answers, random):
    probabilities, correct = zip(*answers, strict=True)
    found = calibration(probabilities, correct)
    assert 0 <= found["ece"] <= 1 and 0 <= found["aurc"] <= 1
    assert found["at_coverage"]["1.0"]["score"] == pytest.approx(np.mean(correct))
    random.shuffle(answers)
    again = calibration(*zip(*answers, strict=True))
    assert (again["ece"], again["aurc"]) == pytest.approx((found["ece"], found["aurc"]))


def test_probabilities_that_sort_right_from_wrong_win_by_silence():
    correct = [1.0] * 50 + [0.0] * 50
    good, bad = np.linspace(1, 0, 100), np.linspace(0, 1, 100)
    assert calibration(good.tolist(), correct)["at_coverage"]["0.5"]["score"] == 1
    assert calibration(bad.tolist(), correct)["aurc"] > 0.5 > calibration(good.tolist(), correct)["aurc"]
