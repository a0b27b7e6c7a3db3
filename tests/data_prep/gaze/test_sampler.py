"""The nucleus against numpy's one-liner, brute force and published figures; its draws against chi-square."""

import itertools
import random

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.gaze.sampler import Sampler

_confidences = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@settings(max_examples=200)
@given(_confidences, st.floats(0.05, 5), st.floats(0.05, 1))
def test_the_published_nucleus(confidences: list[float], temperature: float, mass: float) -> None:
    probabilities = scipy.special.softmax(np.array(confidences) / temperature)
    order = np.argsort(-np.array(confidences), kind="stable")
    cumulative = np.cumsum(probabilities[order])
    if np.abs(cumulative - mass).min() < 1e-12:
        return  # on the edge, the rounding of two sums may differ
    kept = cumulative <= mass
    kept[0] = True
    indices, found = Sampler(mass=mass, temperature=temperature).keep(confidences)
    assert indices.tolist() == order[kept].tolist() == order[: len(indices)].tolist()  # a prefix of the order
    np.testing.assert_allclose(found, probabilities[order[kept]] / probabilities[order[kept]].sum(), rtol=1e-12)


@settings(max_examples=100)
@given(_confidences, st.floats(0.05, 5), st.floats(0.05, 0.99))
def test_top_p_is_the_smallest_set_that_reaches_the_mass(confidences: list[float], temperature: float, mass: float) -> None:
    probabilities = scipy.special.softmax(np.array(confidences) / temperature)
    sums = [
        sum(probabilities[list(some)])
        for count in range(1, len(confidences) + 1)
        for some in itertools.combinations(range(len(confidences)), count)
    ]
    if min(abs(total - mass) for total in sums) < 1e-12:
        return
    smallest = next(
        count
        for count in range(1, len(confidences) + 1)
        if max(sum(probabilities[list(some)]) for some in itertools.combinations(range(len(confidences)), count)) >= mass
    )
    indices, _ = Sampler(nucleus="top_p", mass=mass, temperature=temperature).keep(confidences)
    assert len(indices) == smallest


def test_sums_are_in_fp64() -> None:
    """Ten equal regions have a cumulative probability of 0.9 after nine. In fp32 it is above, and eight are kept."""
    equal = np.full(10, 0.1)
    assert np.sum(np.cumsum(equal.astype(np.float32)) <= 0.9) == 8
    assert len(Sampler().keep([0.5] * 10)[0]) == 9


@pytest.mark.parametrize("count, kept", [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)])
def test_at_temperature_one_all_but_the_least_likely_are_kept(count: int, kept: int) -> None:
    draws = random.Random(0)
    for _ in range(200):
        assert len(Sampler().keep([draws.random() for _ in range(count)])[0]) == kept
    assert len(Sampler(nucleus="top_p").keep([draws.uniform(0.4, 0.6) for _ in range(count)])[0]) == count


def test_ties_stay_in_order_and_zero_temperature_takes_the_first() -> None:
    assert Sampler(mass=1.0).keep([0.2, 0.7, 0.2, 0.7])[0].tolist()[:3] == [1, 3, 0]
    for sampler in (Sampler(temperature=0), Sampler(kind="first"), Sampler(temperature=1e-9)):
        indices, probabilities = sampler.keep([0.2, 0.9, 0.5])
        assert indices.tolist() == [1] and probabilities.tolist() == [1.0]
        assert sampler.draw([0.2, 0.9, 0.5], 0.999999) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Sampler(), Sampler(nucleus="top_p", temperature=0.2), Sampler(mass=0.6, temperature=0.5)])
def test_draws_have_the_probabilities_of_the_nucleus(sampler: Sampler) -> None:
    confidences = [0.3, 0.8, 0.5, 0.55, 0.1]
    indices, probabilities = sampler.keep(confidences)
    draws = random.Random(1)
    drawn = np.bincount([sampler.draw(confidences, draws.random()) for _ in range(20_000)], minlength=5)
    assert drawn.sum() == drawn[indices].sum()
    assert scipy.stats.chisquare(drawn[indices], 20_000 * probabilities).pvalue > 0.001


@pytest.mark.parametrize("count, published", [(1, 1.0), (2, 1.0), (3, 1.96), (5, 3.26)])
def test_distinct_first_choices_of_six_searches(count: int, published: float) -> None:
    draws = random.Random(2)
    distinct = []
    for _ in range(2000):
        confidences = [draws.random() for _ in range(count)]
        distinct.append(len({Sampler().draw(confidences, draws.random()) for _ in range(6)}))
    assert np.mean(distinct) == pytest.approx(published, abs=0.05)
