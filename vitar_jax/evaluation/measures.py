"""Registered measures: statistics of trajectories other than the correctness of answers, and their pooling.

A measure is a function from a trajectory to its values: a number, several (for example, one per mask), or None if it does not
apply. Its pooling defines the value over an evaluation:

  mean    mean over samples of the mean of each sample's values
  values  mean over all values of all samples
  median  median over all values

Measures cover only samples that were played. Rules count samples that were not played as wrong.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from vitar_jax.episodes.regions import Box, centre, iou
from vitar_jax.episodes.trajectory import GOLD_IMAGE, Trajectory
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.mask_scores import POOLED, match_objects
from vitar_jax.evaluation.statistics import mean_interval, score_interval
from vitar_jax.runtime.registry import Registry

TIGHT = 1.5  # a look is tight if its side is at most this many times the gold box's

Pooling = Literal["mean", "values", "median"]
Unit = Literal["", "%", "px"]
Function = Callable[[Trajectory], float | Sequence[float] | None]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A named measure.

    Attributes:
      unit: "%" for shares from 0 to 1, "px" for pixels of the original image.
      title: Column title in tables.
    """

    name: str
    function: Function
    pooling: Pooling = "mean"
    unit: Unit = ""
    title: str = ""

    def values(self, trajectory: Trajectory) -> list[float]:
        """Returns the values of a trajectory, which are empty if the measure does not apply."""
        found = self.function(trajectory)
        if found is None:
            return []
        return [float(value) for value in ((found,) if isinstance(found, int | float) else found)]

    def text(self, value: float) -> str:
        """Formats a value with its unit."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.1f} px" if self.unit == "px" else f"{value:.2f}"

    def pool(self, values: Sequence[Sequence[float]], clusters: Sequence[str]) -> dict[str, Any]:
        """Pools the values of all samples.

        Args:
          clusters: Cluster of each sample (its patient or image).

        Returns:
          `value` (None without values), `n` (number of samples, or of values if values are pooled), `interval` (95 %, for
          means only; within 0 and 1 if all values are, unless they are pixels) and `pooling`.
        """
        if self.pooling == "mean":
            pairs = [(statistics.fmean(each), cluster) for each, cluster in zip(values, clusters, strict=True) if each]
        else:
            pairs = [(value, cluster) for each, cluster in zip(values, clusters, strict=True) for value in each]
        flat, of = [value for value, _ in pairs], [cluster for _, cluster in pairs]
        found: dict[str, Any] = {"value": None, "n": len(flat), "interval": None, "pooling": self.pooling}
        if not flat:
            return found
        if self.pooling == "median":
            return found | {"value": statistics.median(flat)}
        share = self.unit != "px" and all(0 <= value <= 1 for value in flat)
        interval = (score_interval if share else mean_interval)(flat, of)
        return found | {"value": math.fsum(flat) / len(flat), "interval": list(interval) if interval else None}


MEASURES: Registry[Measure] = Registry("measure")


def measure(name: str, *, pooling: Pooling = "mean", unit: Unit = "", title: str = "") -> Callable[[Function], Function]:
    """Returns a decorator that registers a function as the measure `name`."""

    def register(function: Function) -> Function:
        MEASURES[name] = Measure(name, function, pooling, unit, title)
        return function

    return register


def find_measures(names: Sequence[str]) -> list[Measure]:
    """Returns measures by name. A function without the decorator, from a module or file, has pooling "mean".

    Raises:
      ConfigError: If a measure does not exist.
    """
    return list(dict.fromkeys(map(_find, names)))


def _find(name: str) -> Measure:
    found: Any = MEASURES.find(name)
    if isinstance(found, Measure):
        return found
    if not callable(found):
        raise ConfigError(f"measure {name!r}: expected a function, got {found!r}")
    known = next((known for known in MEASURES.values() if known.function is found), None)
    return known or Measure(name, cast(Function, found))


@measure("iou", title="IoU")
def first_look_iou(trajectory: Trajectory) -> float | None:
    """Returns the highest IoU of a box of the first look with a gold box, or 0 without a look at the gold boxes' image.

    Applies to samples with gold boxes.
    """
    if not trajectory.boxes:
        return None
    match = _first_match(trajectory)
    return match.iou if match else 0.0


@measure("centre_error_px", pooling="median", unit="px", title="Centre error")
def centre_error(trajectory: Trajectory) -> float | None:
    """Returns the distance between the centres of the first look's box and the gold box, in original pixels.

    Applies to samples with gold boxes whose first look is at the gold boxes' image.
    """
    match = _first_match(trajectory)
    return match.distance if match else None


@measure("tight_box_share", unit="%", title="Tight boxes")
def tight_box(trajectory: Trajectory) -> float | None:
    """Returns whether the first look's box has at most `TIGHT` times the gold box's side (the square root of its area).

    Applies to samples with gold boxes. A tight box need not overlap the gold box.
    """
    if not trajectory.boxes:
        return None
    match = _first_match(trajectory)
    return float(match is not None and match.side_ratio <= TIGHT)


@measure("action_success", unit="%", title="Valid actions")
def action_success(trajectory: Trajectory) -> float:
    """Returns whether the first turn called a tool with boxes and the tool ran."""
    return float(bool(trajectory.turns) and trajectory.turns[0].carried_out)


@measure("answered", unit="%", title="Answered")
def answered(trajectory: Trajectory) -> float:
    """Returns whether the episode ended with an answer."""
    return float(trajectory.predicted_answer is not None)


@measure("mean_reward", title="Mean reward")
def reward(trajectory: Trajectory) -> float | None:
    """Returns the sum of the reward's parts. Applies to trajectories with a reward."""
    return trajectory.reward if trajectory.rewards else None


@measure("r_lq", pooling="values", unit="%", title="R-LQ")
def found_masks(trajectory: Trajectory) -> list[float] | None:
    """Returns whether each gold mask of the reasoning is found. Applies to samples with objects, as do the next two."""
    return _pooled("r_lq", trajectory)


@measure("r_sq", pooling="values", unit="%", title="R-SQ")
def iou_of_found_masks(trajectory: Trajectory) -> list[float] | None:
    """Returns the IoU of each gold mask of the reasoning that is found."""
    return _pooled("r_sq", trajectory)


@measure("a_miou", pooling="values", unit="%", title="A-mIoU")
def iou_of_answer_masks(trajectory: Trajectory) -> list[float] | None:
    """Returns the IoU of each gold mask of the answer, 0 for a missing one."""
    return _pooled("a_miou", trajectory)


def _pooled(name: str, trajectory: Trajectory) -> list[float] | None:
    matched = match_objects(trajectory)
    return None if matched is None else POOLED[name](matched.counted())


@dataclasses.dataclass(frozen=True)
class _Match:
    """The best matching pair of a box of the first look and a gold box."""

    iou: float
    distance: float
    side_ratio: float


def _first_match(trajectory: Trajectory) -> _Match | None:
    look = trajectory.first_look
    if look is None or look.image != GOLD_IMAGE or not trajectory.boxes:
        return None
    # If no pair overlaps, takes the nearest one.
    pairs = [_compare(box, gold) for box in look.boxes for gold in trajectory.boxes]
    return max(pairs, key=lambda pair: (pair.iou, -pair.distance))


def _compare(box: Box, gold: Box) -> _Match:
    return _Match(iou(box, gold), math.dist(centre(box), centre(gold)), math.sqrt(box.area / gold.area))
