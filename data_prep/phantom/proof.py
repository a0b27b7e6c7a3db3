"""What the quickstart's recipe says of phantoms: thoughts of forced looks, the probe as a baseline, the conclusion."""

from collections.abc import Mapping
from typing import Any

from data_prep.phantom.probe import probe_accuracy
from data_prep.phantom.samples import CACHE, region_words
from vitar_jax.episodes.regions import Box, centre


def spot(box: Box) -> str:
    """Returns what the model thinks before it zooms a box, in the words it was taught."""
    return f"spot {region_words(*centre(box))} zoom close"


def probe(seed: int) -> float:
    """Returns the accuracy of a classifier of the first view that is given the true place."""
    return probe_accuracy(seed=seed, cache_dir=CACHE)


def what_grpo_changed(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one sentence each about box size, place and answers."""
    before, after = results["two_looks_sft"], results["two_looks_grpo"]
    if None in (before["tight_box_share"], after["tight_box_share"], before["centre_error_px"], after["centre_error_px"]):
        return "No valid boxes to compare."
    return (
        f"Size: {before['tight_box_share']:.0%} of boxes were tight before GRPO, {after['tight_box_share']:.0%} after. "
        f"Place: the median box was {before['centre_error_px']:.0f} px off before, {after['centre_error_px']:.0f} px after. "
        f"Answers: {before['accuracy']:.1%} right before, {after['accuracy']:.1%} after."
    )
