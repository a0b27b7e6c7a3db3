"""The conclusions of the quickstarts."""

import pytest

from data_prep.phantom.proof import what_grpo_changed, what_masks_showed


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
