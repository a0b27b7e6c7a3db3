"""Measures of episodes small enough to work out by hand, and how they are pooled."""

import dataclasses
import math
from pathlib import Path
from unittest.mock import patch

import pytest

from vitar_jax.episodes.regions import Box
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.measures import MEASURES, Measure, find_measures, measure
from vitar_jax.evaluation.statistics import mean_interval, score_interval

GOLD = (100.0, 100.0, 150.0, 150.0)


def measured(*trajectories):
    """Every measure's value over trajectories of one sample each."""
    names = [str(number) for number in range(len(trajectories))]
    return {name: one.pool([one.values(t) for t in trajectories], names)["value"] for name, one in MEASURES.items()}


def test_measures_by_hand(make_trajectory):
    found = measured(
        make_trajectory(0, box=GOLD, gold=GOLD, answer="b"),  # a hit
        make_trajectory(1, box=(100, 100, 200, 200), gold=GOLD, answer="A"),  # twice the side
        make_trajectory(2, box=(200, 100, 250, 150), gold=GOLD, answer=None),  # 100 px off
        make_trajectory(3, box=None, gold=GOLD, answer="B"),
    )
    assert found == pytest.approx(
        {
            "iou": (1 + 0.25 + 0 + 0) / 4,
            "centre_error_px": math.hypot(25, 25),  # the median of 0, 35.4 and 100
            "tight_box_share": 0.5,  # the first, and the third although it missed
            "action_success": 0.75,
            "answered": 0.75,
            "mean_reward": (0.5 + 0.5 + 0.5 + 1.5) / 4,
            **dict.fromkeys(("r_lq", "r_sq", "a_miou")),  # without objects
        }
    )


def test_without_gold_boxes_looks_are_not_measured(make_trajectory):
    found = measured(make_trajectory(0, gold=None))
    assert (found["iou"], found["centre_error_px"], found["tight_box_share"]) == (None, None, None)
    assert found["action_success"] == 1


def test_an_episode_without_a_gold_box_changes_no_measure_of_looks(make_trajectory):
    hit, other = make_trajectory(0, box=GOLD, gold=GOLD), make_trajectory(1, gold=None)
    assert measured(hit, other)["iou"] == measured(hit, other)["tight_box_share"] == 1


def test_without_looks_they_are_zero(make_trajectory):
    found = measured(make_trajectory(0, box=None, answer=None))
    assert (found["iou"], found["centre_error_px"], found["tight_box_share"]) == (0, None, 0)
    assert (found["answered"], found["action_success"]) == (0, 0)


def test_a_reward_that_failed_counts_in_no_mean(make_trajectory):
    failed = dataclasses.replace(make_trajectory(0), rewards=None)
    assert measured(failed, make_trajectory(1, answer="B"))["mean_reward"] == 1.5
    assert measured(failed)["mean_reward"] is None


def test_a_look_that_the_tool_refused_is_none(make_trajectory):
    found = measured(make_trajectory(0, box=GOLD, gold=GOLD, error=("box_too_small", "A box is too small.")))
    assert (found["iou"], found["centre_error_px"], found["tight_box_share"]) == (0, None, 0)
    assert found["action_success"] == 0


def test_the_best_pair_of_boxes_counts(make_trajectory):
    far, near = Box(0, 0, 50, 50, "original"), Box(*GOLD, "original")
    assert measured(make_trajectory(0, box=GOLD, boxes=(far, near)))["iou"] == 1
    # None overlaps: the nearest pair is measured.
    missed = measured(make_trajectory(0, box=(300, 100, 350, 150), boxes=(far, near)))
    assert (missed["iou"], missed["centre_error_px"]) == (0, 200)


VALUES = [[0.0, 1.0, 1.0], [], [0.5], [0.25]]
CLUSTERS = ["a", "a", "b", "c"]


@pytest.mark.parametrize(
    "pooling, value, n", [("mean", (2 / 3 + 0.5 + 0.25) / 3, 3), ("values", 2.75 / 5, 5), ("median", 0.5, 5)]
)
def test_each_pooling_is_what_it_says(pooling, value, n):
    found = Measure("mine", lambda trajectory: None, pooling).pool(VALUES, CLUSTERS)
    assert (found["value"], found["n"], found["pooling"]) == (pytest.approx(value), n, pooling)


def test_intervals_are_of_means_and_count_clusters():
    several = [0.0, 1.0, 1.0, 0.5, 0.25]
    pooled = Measure("mine", lambda trajectory: None, "values").pool(VALUES, CLUSTERS)
    assert tuple(pooled["interval"]) == score_interval(several, ["a", "a", "a", "b", "c"])
    assert Measure("mine", lambda trajectory: None, "median").pool(VALUES, CLUSTERS)["interval"] is None
    shares = Measure("mine", lambda trajectory: None).pool([[1.0], [0.0], [1.0]], ["a", "b", "c"])
    assert tuple(shares["interval"]) == score_interval([1, 0, 1], "abc")
    numbers = Measure("mine", lambda trajectory: None).pool([[1.5], [0.5], [1.0]], ["a", "b", "c"])
    pixels = Measure("mine", lambda trajectory: None, unit="px").pool([[0.75], [0.25], [0.5]], ["a", "b", "c"])
    assert tuple(numbers["interval"]) == mean_interval([1.5, 0.5, 1.0], "abc")
    assert tuple(pixels["interval"]) == mean_interval([0.75, 0.25, 0.5], "abc")
    nothing = Measure("mine", lambda trajectory: None).pool([[], []], ["a", "b"])
    assert (nothing["value"], nothing["n"], nothing["interval"]) == (None, 0, None)


def test_measures_are_found_by_name_and_in_files(tmp_path: Path, make_trajectory):
    (tmp_path / "mine.py").write_text(
        "from vitar_jax.evaluation.measures import measure\n"
        "def turns(trajectory):\n    return len(trajectory.turns)\n"
        "@measure('thoughts', pooling='values')\n"
        "def thoughts(trajectory):\n    return [len(turn.thought) for turn in trajectory.turns if turn.thought]\n"
    )
    with patch.dict(MEASURES):
        iou, turns, thoughts = find_measures(["iou", f"{tmp_path}/mine.py:turns", f"{tmp_path}/mine.py:thoughts"])
        assert turns.values(make_trajectory(0)) == [2] and turns.pooling == "mean"
        assert (thoughts.name, thoughts.pooling, len(thoughts.values(make_trajectory(0)))) == ("thoughts", "values", 2)
    assert iou is MEASURES["iou"]
    with pytest.raises(ConfigError, match="unknown measure 'iuo', did you mean iou"):
        find_measures(["iuo"])
    with patch.dict(MEASURES):
        assert measure("decorated")(len) is len and MEASURES["decorated"].function is len
