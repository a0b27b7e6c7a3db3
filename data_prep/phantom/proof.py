"""Functions that the quickstart's recipe names: the thought of a forced look, the probe as a baseline, the conclusion."""

from collections.abc import Mapping
from typing import Any

from data_prep.phantom.probe import probe_accuracy
from data_prep.phantom.samples import CACHE, region_words
from vitar_jax.episodes.regions import Box, centre

_INTERVALS = (
    "Intervals are of the test phantoms alone, not of training: after SFT, two processors gave 70.5 % and 81.6 % for one seed "
    "and commit."
)


def spot(box: Box) -> str:
    """Returns the thought of a turn that zooms `box`, in the words of the demonstrations."""
    return f"spot {region_words(*centre(box))} zoom close"


def probe(seed: int) -> float:
    """Returns the accuracy of a classifier that sees the first view and knows the lesion's true location."""
    return probe_accuracy(seed=seed, cache_dir=CACHE)


def probe_of_96_px(seed: int) -> float:
    """Returns the accuracy of `probe` on the phantoms of `configs/quickstart_qwen3.py`."""
    return probe_accuracy(seed=seed, cache_dir=CACHE, view=96, period=(4.4, 4.9))


def what_grpo_changed(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one sentence each on the boxes' size and location and the answers, before and after GRPO, and on intervals."""
    before, after = results["two_looks_sft"], results["two_looks_grpo"]
    if None in (before["tight_box_share"], after["tight_box_share"], before["centre_error_px"], after["centre_error_px"]):
        return f"No valid boxes to compare. {_INTERVALS}"
    return (
        f"Size: {before['tight_box_share']:.0%} of boxes were tight before GRPO, {after['tight_box_share']:.0%} after. "
        f"Place: the median box was {before['centre_error_px']:.0f} px off before, {after['centre_error_px']:.0f} px after. "
        f"Answers: {before['accuracy']:.1%} right before, {after['accuracy']:.1%} after. {_INTERVALS}"
    )
