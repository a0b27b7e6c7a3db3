"""Intervals against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from vitar_jax.evaluation.statistics import mean_interval, wilson_interval


@st.composite
def shares(draw):
    n = draw(st.integers(1, 20_000))
    return draw(st.integers(0, n)), n


@given(shares(), st.floats(0.5, 0.999))
def test_equals_scipys(share, confidence):
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
