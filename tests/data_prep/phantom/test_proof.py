"""The quickstart's conclusion."""

import pytest

from data_prep.phantom.proof import what_grpo_changed


@pytest.mark.parametrize("error, words", [(8.1, "9 px off before, 8 px after"), (None, "No valid boxes")])
def test_the_conclusion_says_what_intervals_are_of(error: float | None, words: str) -> None:
    before = {"tight_box_share": 0.0, "centre_error_px": 8.7, "accuracy": 0.705}
    after = {"tight_box_share": 1.0, "centre_error_px": error, "accuracy": 0.996}
    found = what_grpo_changed({"two_looks_sft": before, "two_looks_grpo": after})
    assert words in found and "Intervals are of the test phantoms alone" in found
