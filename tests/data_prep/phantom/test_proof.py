"""The conclusions of the quickstarts, and a control's tool."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from data_prep.phantom.findings import source
from data_prep.phantom.proof import repeats, unmarked, what_grpo_changed, what_masks_showed, what_the_shortcut_did
from tests.kit.trajectories import make_trajectory
from vitar_jax.episodes.actions import ActionError
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.tools import TOOLS, Context, Observation


@pytest.mark.parametrize("error, words", [(8.1, "9 px off before, 8 px after"), (None, "No valid boxes")])
def test_the_conclusion_says_what_intervals_are_of(error: float | None, words: str) -> None:
    before = {"tight_box_share": 0.0, "centre_error_px": 8.7, "accuracy": 0.705}
    after = {"tight_box_share": 1.0, "centre_error_px": error, "accuracy": 0.996}
    found = what_grpo_changed({"two_looks_sft": before, "two_looks_grpo": after})
    assert words in found and "Intervals are of the test phantoms alone" in found


def test_the_conclusion_of_masks_says_which_targets_are_missed() -> None:
    good = dict(r_lq=0.95, r_sq=0.85, a_miou=0.75, accuracy=0.92)
    without = {"erased": dict(accuracy=0.51), "elsewhere": dict(accuracy=0.9)}
    said = what_masks_showed({"grpo": good, "wrong_image": good | {"r_lq": 0.04}} | without)
    assert "missed" not in said and "R-LQ 95.0% (target 90%)" in said and "R-LQ is 4.0%" in said
    assert "without what it outlined: 51.0%; with as much blurred elsewhere: 90.0%" in said
    said = what_masks_showed({"grpo": good | {"r_sq": None, "accuracy": 0.55}, "wrong_image": good | {"r_lq": 0.5}} | without)
    assert said.count("missed") == 3 and "R-SQ none (target 80%, missed)" in said


def test_the_conclusion_of_the_shortcut_says_whether_the_alarm_was_raised() -> None:
    def arm(accuracy: float, reliance: list[float], rewards: list[float]) -> dict[str, Any]:
        steps = range(10, 10 * len(reliance) + 10, 10)
        curves = {"probe/reliance/blank": reliance, "reward/mean": rewards, "probe/reward/mean": [0.5] * 4}
        curves |= {"probe/tool_turns": [0.5] * 4}
        return dict(accuracy=accuracy, curves={name: [*zip(steps, curve, strict=True)] for name, curve in curves.items()}) | {
            "data_prep.phantom.proof:repeats": 0.9
        }

    rewards = [0.5, 0.6, 0.7, 0.8]
    rows = {"sft": arm(0.6, [0.3] * 4, rewards), "grpo": arm(0.1, [0.4, 0.3, 0.2, 0.1], rewards)}
    rows |= {"counterfactual": arm(0.29, [0.3, 0.4, 0.5, 0.6], rewards)}
    said = what_the_shortcut_did(rows | {f"{name}_blank": dict(accuracy=0.05) for name in rows})
    assert "grpo: 10.0% right on held-out samples, 5.0% with a blank image; 90% of answers repeat the question's" in said
    assert "the alarm of reliance was raised at step 30. counterfactual: 29.0%" in said and said.count("not raised") == 1
    assert "Lead of counterfactual: +19.0% (target 20%, missed)" in said


def test_repeating_the_questions_texture() -> None:
    trajectory = make_trajectory(metadata={"named": "columns"})
    assert [repeats(dataclasses.replace(trajectory, predicted_answer=letter)) for letter in ("C", "B", None)] == [1, 0, 0]


def test_a_control_shows_the_picture_without_outlines() -> None:
    sample = source("test", seed=0)[0]
    (picture,) = sample.images
    masks = tuple(ObjectMask(place, one.name, "reasoning", one.mask) for place, one in enumerate(sample.objects))
    context = Context(picture, (), picture.width * picture.height, masks)  # type: ignore[arg-type]
    plain, marked = unmarked(context), TOOLS["outline"](context)
    assert isinstance(plain, Observation) and isinstance(marked, Observation) and plain.image and marked.image
    grey = np.asarray(picture)
    np.testing.assert_array_equal(plain.image, np.stack([grey] * 3, axis=-1))
    assert np.any(np.asarray(marked.image) != plain.image) and unmarked.name == "outline"
    blank = Context(picture, (), 1)  # type: ignore[arg-type]
    assert isinstance(unmarked(blank), ActionError) and unmarked(blank) == TOOLS["outline"](blank)
