"""Scores of episodes small enough to work out by hand."""

import dataclasses
import json
import math

import pytest

from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError
from vitar_jax.evaluation.looks import score

GOLD = (100.0, 100.0, 150.0, 150.0)


def test_scores_by_hand(make_trajectory):
    scores = score(
        iter(
            [
                make_trajectory(0, box=GOLD, gold=GOLD, answer="b"),  # a hit, and right but for the case
                make_trajectory(1, box=(100, 100, 200, 200), gold=GOLD, answer="A"),  # twice the side
                make_trajectory(2, box=(200, 100, 250, 150), gold=GOLD, answer=None),  # 100 px off
                make_trajectory(3, box=None, gold=GOLD, answer="B"),
            ]
        )
    )
    assert scores.n == 4
    assert scores.accuracy == 0.5
    assert scores.iou == pytest.approx((1 + 0.25 + 0 + 0) / 4)
    assert scores.centre_error_px == pytest.approx(math.hypot(25, 25))  # the median of 0, 35.4 and 100
    assert scores.tight_box_share == 0.5  # the first, and the third for all that it missed
    assert scores.action_success == 0.75
    assert scores.answered == 0.75
    assert scores.mean_reward == pytest.approx((0.5 + 0.5 + 0.5 + 1.5) / 4)
    low, high = scores.interval
    assert low == pytest.approx(0.15003, abs=1e-5) and high == pytest.approx(0.84997, abs=1e-5)


def test_without_gold_boxes_nothing_is_said_of_looks(make_trajectory):
    scores = score([make_trajectory(0, gold=None)])
    assert (scores.iou, scores.centre_error_px, scores.tight_box_share) == (None, None, None)
    assert scores.action_success == 1


def test_without_looks_they_score_nothing(make_trajectory):
    scores = score([make_trajectory(0, box=None, answer=None)])
    assert (scores.iou, scores.centre_error_px, scores.tight_box_share) == (0, None, 0)
    assert (scores.answered, scores.accuracy, scores.action_success) == (0, 0, 0)


def test_a_reward_that_failed_counts_in_no_mean(make_trajectory):
    failed = dataclasses.replace(make_trajectory(0), rewards=None)
    assert score([failed, make_trajectory(1, answer="B")]).mean_reward == 1.5
    assert score([failed]).mean_reward is None


def test_a_look_the_tool_refused_is_none(make_trajectory):
    refused = make_trajectory(0, box=GOLD, gold=GOLD, error=("box_too_small", "A box is too small."))
    scores = score([refused])
    assert (scores.iou, scores.centre_error_px, scores.tight_box_share) == (0, None, 0)
    assert scores.action_success == 0


def test_a_look_at_another_image_is_not_compared_with_boxes_on_the_first(make_trajectory):
    trajectory = make_trajectory(0, box=GOLD, gold=GOLD)
    action = {"name": "zoom", "arguments": {"box": [list(GOLD)], "image": 1}}
    turn = dataclasses.replace(trajectory.turns[0], action=action)
    images = (trajectory.images[0], *trajectory.images)  # the sample's second one is the first again
    scores = score([dataclasses.replace(trajectory, images=images, turns=(turn, *trajectory.turns[1:]))])
    assert (scores.iou, scores.centre_error_px, scores.action_success) == (0, None, 1)


def test_the_best_pair_of_boxes_counts(make_trajectory):
    far, near = Box(0, 0, 50, 50, "original"), Box(*GOLD, "original")
    assert score([make_trajectory(0, box=GOLD, boxes=(far, near))]).iou == 1
    # None overlaps: the nearest pair is measured.
    missed = score([make_trajectory(0, box=(300, 100, 350, 150), boxes=(far, near))])
    assert (missed.iou, missed.centre_error_px) == (0, 200)


def test_goes_through_json(make_trajectory):
    scores = score([make_trajectory(n) for n in range(3)])
    record = json.loads(json.dumps(scores.to_json()))
    assert record == scores.to_json()
    assert record["interval"] == list(scores.interval)


def test_nothing_to_score():
    with pytest.raises(DataError):
        score([])
