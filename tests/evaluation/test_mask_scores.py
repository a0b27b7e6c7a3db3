"""Scores of masks, against a brute force over all assignments, and the golden cases of the published metric."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitar_jax.episodes.object_masks import ObjectMask, Part
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import SegmentedObject
from vitar_jax.errors import DataError
from vitar_jax.evaluation import mask_scores
from vitar_jax.evaluation.mask_scores import POOLED, MatchedMasks, MatchedObjects, mask_ious, match_objects
from vitar_jax.evaluation.measures import MEASURES
from vitar_jax.processing.masks import best_pairs, iou_matrix


def masks_of(pixels: Sequence[np.ndarray] | np.ndarray) -> list[Mask]:
    return [Mask.of(one, "original") for one in pixels]


def match_masks(predicted: np.ndarray, gold: np.ndarray) -> MatchedMasks:
    return mask_scores.match_masks(masks_of(predicted), masks_of(gold))


def scores_of(samples: Sequence[tuple[str, MatchedObjects]], *, unasked: bool = False) -> dict:
    """Pools samples, each with its image, under `vrt` or, with `unasked`, under `vrt-strict`."""
    counted = [objects.counted(unasked=unasked) for _, objects in samples]
    images = [image for image, _ in samples]
    return {MEASURES[key].title: MEASURES[key].pool([*map(values, counted)], images) for key, values in POOLED.items()}


def values_of(scores: dict) -> dict:
    return {name: score["value"] for name, score in scores.items()}


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
        samples.append((f"image {number // 2}", MatchedObjects(*parts)))
    scores = scores_of(samples)
    found = [iou for iou in reasoning if iou > 0.5]
    expected = {"R-LQ": len(found) / len(reasoning), "R-SQ": np.mean(found), "A-mIoU": np.mean(answers)}
    assert values_of(scores) == pytest.approx(expected, rel=1e-6)
    assert {name: score["n"] for name, score in scores.items()} == {
        "R-LQ": len(reasoning),
        "R-SQ": len(found),
        "A-mIoU": len(answers),
    }
    for score in scores.values():
        assert score["interval"][0] < score["value"] < score["interval"][1]


def test_ties_are_broken_as_published() -> None:
    """Two assignments have a sum of 1, and find one mask or none. The published code takes the diagonal."""
    ious = np.array([[0.6, 0.5], [0.5, 0.4]], np.float32)
    rows, columns = best_pairs(ious)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [0, 1])
    assert (ious[rows, columns] > 0.5).sum() == 1


def test_exactly_half_is_not_found() -> None:
    gold = np.ones((1, 2, 2), bool)
    half = np.array([[[True, True], [False, False]]])
    scores = scores_of([("a", MatchedObjects(match_masks(half, gold), MatchedMasks()))])
    assert values_of(scores) == {"R-LQ": 0, "R-SQ": None, "A-mIoU": None}


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
    samples = [("a", MatchedObjects(matched, matched))]
    assert values_of(scores_of(samples)) == {"R-LQ": 1, "R-SQ": 1, "A-mIoU": 1}
    assert values_of(scores_of(samples, unasked=True)) == {"R-LQ": 0.5, "R-SQ": 1, "A-mIoU": 0.5}


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_intervals_contain_the_score_and_do_not_depend_on_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(rng.integers(1, 9)):
        parts = (MatchedMasks(tuple(rng.random(rng.integers(0, 4))), int(rng.integers(3))) for _ in range(2))
        samples.append((f"{i // 2}", MatchedObjects(*parts)))
    for unasked in (False, True):
        scores, backwards = scores_of(samples, unasked=unasked), scores_of(samples[::-1], unasked=unasked)
        for name, score in scores.items():
            assert score["value"] == (None if score["value"] is None else pytest.approx(backwards[name]["value"]))
            if score["interval"] is not None:
                assert 0 <= score["interval"][0] <= score["value"] <= score["interval"][1] <= 1
    loose, strict = scores_of(samples)["R-LQ"]["value"], scores_of(samples, unasked=True)["R-LQ"]["value"]
    if loose is not None:
        assert strict <= loose


@settings(max_examples=100)
@given(arrays(bool, (5, 3, 4)))
def test_run_lengths_give_the_iou_of_the_pixels(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(mask_ious(masks_of(pixels[:2]), masks_of(pixels[2:])), iou_matrix(pixels[:2], pixels[2:]))


LEFT, RIGHT = np.zeros((2, 4, 6), bool)
LEFT[:, :3], RIGHT[:, 3:] = True, True


def objects() -> tuple[SegmentedObject, ...]:
    left, right = masks_of([LEFT, RIGHT])
    return SegmentedObject("obj1", left, "", True, False), SegmentedObject("obj2", right, "", True, True)


def said(part: Part | None, pixels: np.ndarray | None) -> ObjectMask:
    return ObjectMask(0, "obj1", part, None if pixels is None else Mask.of(pixels, "original"))


def test_the_masks_of_the_last_turn_count_by_their_part(make_trajectory) -> None:
    """The object's name plays no role, as published. A token without a mask or outside of both parts is none."""
    outside, missing = said(None, RIGHT), said("reasoning", None)
    trajectory = make_trajectory(0, objects=objects())
    first, last = trajectory.turns
    first = replace(first, masks=(said("reasoning", LEFT),))
    turns = (first, replace(last, masks=(outside, missing, said("reasoning", RIGHT))))
    matched = match_objects(replace(trajectory, turns=turns))
    assert matched == MatchedObjects(MatchedMasks((0.0, 1.0)), MatchedMasks((0.0,)))
    turns = (first, replace(last, masks=(said("reasoning", RIGHT), said("answer", LEFT), said("answer", RIGHT))))
    trajectory = replace(trajectory, turns=turns)
    assert match_objects(trajectory) == MatchedObjects(MatchedMasks((0.0, 1.0)), MatchedMasks((1.0,), unasked=1))
    measured = {name: MEASURES[name].values(trajectory) for name in POOLED}
    assert measured == {"r_lq": [0, 1], "r_sq": [1], "a_miou": [1]}
    assert match_objects(replace(trajectory, turns=())) == MatchedObjects(MatchedMasks((0.0, 0.0)), MatchedMasks((0.0,)))


def test_without_objects_nothing_is_measured(make_trajectory) -> None:
    trajectory = make_trajectory(0)
    assert match_objects(trajectory) is None
    assert [MEASURES[name].values(trajectory) for name in POOLED] == [[], [], []]


def test_masks_of_another_size_are_named(make_trajectory) -> None:
    trajectory = make_trajectory(0, objects=objects())
    last = replace(trajectory.turns[-1], masks=(said("answer", RIGHT.T),))
    with pytest.raises(DataError, match=r"trajectory phantom-0: got masks of \(4, 6\), \(6, 4\), expected one"):
        match_objects(replace(trajectory, turns=(last,)))
