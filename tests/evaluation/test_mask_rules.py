"""Scores of masks, against a brute force over all assignments, and the golden cases of the published metric."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.mask_rules import (
    MASK_RULES,
    MaskSample,
    MatchedMasks,
    find_mask_rule,
    mask_scores,
    mask_scores_by_class,
    match_masks,
)
from vitar_jax.processing.masks import best_pairs

VRT, STRICT = MASK_RULES["vrt"], MASK_RULES["vrt-strict"]


def brute_iou(one: np.ndarray, other: np.ndarray) -> float:
    a, b = ({*map(tuple, np.argwhere(mask))} for mask in (one, other))
    return len(a & b) / len(a | b) if a | b else 0.0


def brute_matches(predicted: np.ndarray, gold: np.ndarray) -> list[MatchedMasks]:
    """Returns the result of each assignment of the largest sum. Several only if assignments tie."""
    found = []
    finds = [any(brute_iou(one, mask) > 0.5 for mask in gold) for one in predicted]
    for order in itertools.permutations(range(max(len(predicted), len(gold))), len(gold)):
        pairs = zip(order, gold, strict=True)
        ious = tuple(brute_iou(predicted[i], mask) if i < len(predicted) else 0.0 for i, mask in pairs)
        unasked = [i for i in range(len(predicted)) if i not in order and not finds[i]]
        found.append(MatchedMasks(ious, len(unasked)))
    best = max(sum(matched.ious) for matched in found)
    return [matched for matched in found if sum(matched.ious) >= best - 1e-6]


def random_masks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Up to 4 predicted and 4 gold masks of few pixels, so that ties and empty masks are common."""
    predicted, gold = (rng.random((rng.integers(0, 5), 2, 3)) < rng.choice([0.0, 0.3, 0.7]) for _ in range(2))
    if len(predicted) and len(gold) and rng.random() < 0.5:
        predicted[0] = gold[-1]
    return predicted, gold


@pytest.mark.slow
def test_assignments_are_the_best_of_all() -> None:
    """On 1,000 random cases. Among tied assignments, the one of the published code is any of them."""
    rng, tied, with_empty = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        predicted, gold = random_masks(rng)
        matched = match_masks(predicted, gold)
        best = brute_matches(predicted, gold)
        assert any(
            np.allclose(matched.ious, one.ious, atol=1e-6) and matched.unasked == one.unasked for one in best
        )
        tied += len({tuple(np.round(one.ious, 6)) for one in best}) > 1
        with_empty += any(not mask.any() for mask in (*predicted, *gold))
    assert tied > 20 and with_empty > 100


def test_scores_are_those_of_a_second_implementation() -> None:
    """Pooled over masks, from the masks themselves, without ties."""
    rng, samples, reasoning, answers = np.random.default_rng(1), [], [], []
    for number in range(40):
        parts = []
        for pool in (reasoning, answers):
            predicted, gold = (rng.random((rng.integers(0, 4), 8, 9)) < 0.5 for _ in range(2))
            for i in range(min(len(predicted), len(gold))):
                predicted[i] = gold[i] ^ (rng.random((8, 9)) < rng.choice([0.0, 0.1, 0.4]))
            parts.append(match_masks(predicted[::-1], gold))
            best = brute_matches(predicted, gold)
            assert len({tuple(np.round(one.ious, 6)) for one in best}) == 1
            pool.extend(best[0].ious)
        samples.append(MaskSample(f"image {number // 2}", *parts))
    scores = mask_scores(samples, VRT)
    found = [iou for iou in reasoning if iou > 0.5]
    expected = {"R-LQ": len(found) / len(reasoning), "R-SQ": np.mean(found), "A-mIoU": np.mean(answers)}
    assert {name: score.value for name, score in scores.items()} == pytest.approx(expected, rel=1e-6)
    assert {name: score.masks for name, score in scores.items()} == {
        "R-LQ": len(reasoning),
        "R-SQ": len(found),
        "A-mIoU": len(answers),
    }
    for score in scores.values():
        assert score.value is not None and score.interval is not None
        assert score.interval[0] < score.value < score.interval[1]


def test_ties_are_broken_as_published() -> None:
    """Two assignments have a sum of 1, and find one mask or none. The published code takes the diagonal."""
    ious = np.array([[0.6, 0.5], [0.5, 0.4]], np.float32)
    rows, columns = best_pairs(ious)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [0, 1])
    assert (ious[rows, columns] > 0.5).sum() == 1


def test_exactly_half_is_not_found() -> None:
    gold = np.ones((1, 2, 2), bool)
    half = np.array([[[True, True], [False, False]]])
    scores = mask_scores([MaskSample("a", match_masks(half, gold), MatchedMasks())], VRT)
    assert (scores["R-LQ"].value, scores["R-SQ"].value, scores["A-mIoU"].value) == (0, None, None)


def test_missing_and_empty_masks_have_an_iou_of_0() -> None:
    empty, gold = np.zeros((1, 2, 2), bool), np.ones((2, 2, 2), bool)
    none = np.zeros((0, 2, 2), bool)
    assert match_masks(none, gold) == MatchedMasks((0.0, 0.0))
    assert match_masks(empty, empty) == MatchedMasks((0.0,))
    assert match_masks(gold, none) == MatchedMasks((), unasked=2)
    assert match_masks(none, none) == MatchedMasks()
    assert match_masks(gold[:1], gold).ious == (1.0, 0.0)


def test_only_the_strict_rule_counts_what_no_one_asked_for() -> None:
    """A repeated mask of a found object is no fault; a mask of something else is."""
    object_, other = np.zeros((2, 4, 4), bool)
    object_[:2], other[3] = True, True
    matched = match_masks(np.stack([object_, object_, other]), object_[None])
    assert matched == MatchedMasks((1.0,), unasked=1)
    samples = [MaskSample("a", matched, matched)]
    assert {name: score.value for name, score in mask_scores(samples, VRT).items()} == {"R-LQ": 1, "R-SQ": 1, "A-mIoU": 1}
    strict = {name: score.value for name, score in mask_scores(samples, STRICT).items()}
    assert strict == {"R-LQ": 0.5, "R-SQ": 1, "A-mIoU": 0.5}


def test_a_sample_counts_in_each_of_its_classes() -> None:
    def sample(iou: float, *classes: str) -> MaskSample:
        return MaskSample("a", MatchedMasks((iou,)), MatchedMasks((iou,)), classes)

    scores = mask_scores_by_class([sample(0.9, "#loc", "#comp"), sample(0.1, "#loc"), sample(0.7)], VRT)
    assert list(scores) == ["#comp", "#loc"]
    assert (scores["#comp"]["R-LQ"].value, scores["#loc"]["R-LQ"].value) == (1, 0.5)
    assert scores["#loc"]["A-mIoU"].value == pytest.approx(0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_intervals_contain_the_score_and_do_not_depend_on_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(rng.integers(1, 9)):
        parts = (MatchedMasks(tuple(rng.random(rng.integers(0, 4))), int(rng.integers(3))) for _ in range(2))
        samples.append(MaskSample(f"{i // 2}", *parts))
    for rule in (VRT, STRICT):
        scores, backwards = mask_scores(samples, rule), mask_scores(samples[::-1], rule)
        for name, score in scores.items():
            assert score.value == (None if score.value is None else pytest.approx(backwards[name].value))
            if score.interval is not None:
                assert 0 <= score.interval[0] <= score.value <= score.interval[1] <= 1
    loose, strict = mask_scores(samples, VRT), mask_scores(samples, STRICT)
    if loose["R-LQ"].value is not None:
        assert strict["R-LQ"].value <= loose["R-LQ"].value


def test_rules_are_found_by_name() -> None:
    assert find_mask_rule("vrt") is find_mask_rule("vrt/1") is VRT
    assert str(find_mask_rule("vrt-strict")) == "vrt-strict/1"
    with pytest.raises(ConfigError, match=r"^mask rule: got 'vrt/2', expected one of vrt/1, vrt-strict/1$"):
        find_mask_rule("vrt/2")
