"""Predicted masks beside expert ones: their assignment, and the published scores.

The scores are those of Visual Reasoning Tracer (arXiv:2512.05091). Predicted masks are assigned to gold masks, one to one,
separately in the reasoning and in the answer. Scores are pooled over the masks of all samples, not averaged by sample:

  R-LQ     share of the reasoning's gold masks that are found: IoU above 0.5
  R-SQ     mean IoU of the found ones
  A-mIoU   mean IoU of the answer's gold masks; 0 for a missing one
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float32

from vitar_jax.episodes.object_masks import Part
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import SegmentedObject
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import DataError
from vitar_jax.processing.masks import best_pairs

FOUND = 0.5  # an IoU above it finds a mask


@dataclass(frozen=True)
class MatchedMasks:
    """The masks of one part of an episode, assigned to each other.

    Attributes:
      ious: IoU of each gold mask with its predicted mask, 0 without one.
      unasked: Number of predicted masks that no one asked for: those which the assignment leaves over and which find no gold
        mask. A second mask of a found object is none of them.
    """

    ious: tuple[float, ...] = ()
    unasked: int = 0


@dataclass(frozen=True)
class CountedMasks:
    """IoU of each mask of a sample that a rule counts, in the reasoning and in the answer."""

    reasoning: tuple[float, ...]
    answer: tuple[float, ...]


@dataclass(frozen=True)
class MatchedObjects:
    """The objects of a sample with the masks of its episode."""

    reasoning: MatchedMasks
    answer: MatchedMasks

    def counted(self, *, unasked: bool = False) -> CountedMasks:
        """Returns the gold masks and, if `unasked`, each mask that no one asked for as a gold mask of IoU 0."""
        parts = (part.ious + (0.0,) * (part.unasked if unasked else 0) for part in (self.reasoning, self.answer))
        return CountedMasks(*parts)


# The values of a sample that each score pools.
POOLED: Mapping[str, Callable[[CountedMasks], list[float]]] = {
    "r_lq": lambda masks: [float(iou > FOUND) for iou in masks.reasoning],
    "r_sq": lambda masks: [iou for iou in masks.reasoning if iou > FOUND],
    "a_miou": lambda masks: list(masks.answer),
}


def match_objects(trajectory: Trajectory) -> MatchedObjects | None:
    """Matches the masks of the last turn, which answers, with the sample's objects; returns None without objects.

    Tokens without a mask, and those outside the reasoning and the answer, count as no mask.

    Raises:
      DataError: If a mask has another size than the objects' masks.
    """
    if not trajectory.objects:
        return None
    made = trajectory.turns[-1].masks if trajectory.turns else ()
    try:
        return MatchedObjects(
            *(
                match_masks([one.mask for one in made if one.part == part and one.mask], gold)
                for part, gold in gold_masks(trajectory.objects).items()
            )
        )
    except ValueError as error:
        raise DataError(f"trajectory {trajectory.sample_id}: {error}") from error


def gold_masks(objects: Sequence[SegmentedObject]) -> dict[Part, list[Mask]]:
    """Returns the masks of the objects that the reasoning should show, and of those that the answer should show."""
    return {part: [one.mask for one in objects if getattr(one, f"in_{part}")] for part in get_args(Part)}


def match_masks(predicted: Sequence[Mask], gold: Sequence[Mask]) -> MatchedMasks:
    """Assigns predicted masks to gold masks of one image; see `best_pairs`.

    Raises:
      ValueError: If the masks differ in size.
    """
    ious = np.zeros(len(gold))
    if not predicted:
        return MatchedMasks(tuple(ious.tolist()))
    matrix = mask_ious(predicted, gold)
    rows, columns = best_pairs(matrix)
    ious[columns] = matrix[rows, columns]
    left_over = np.ones(len(predicted), bool)
    left_over[rows] = False
    finds_none = ~(matrix > FOUND).any(axis=1)
    return MatchedMasks(tuple(ious.tolist()), int((left_over & finds_none).sum()))


def mask_ious(predicted: Sequence[Mask], gold: Sequence[Mask]) -> Float32[np.ndarray, "predicted gold"]:
    """Returns the IoU of each pair of masks, 0 for two empty masks, rounded to float32 as published.

    Computes it from run lengths, because the masks of a large image take megabytes each.

    Raises:
      ValueError: If the masks differ in size.
    """
    if len(shapes := {mask.shape for mask in (*predicted, *gold)}) > 1:
        raise ValueError(f"got masks of {', '.join(map(str, sorted(shapes)))}, expected one (height, width)")
    overlap, ends = np.zeros((len(predicted), len(gold))), [np.cumsum(one.runs) for one in gold]
    for row, mask in zip(overlap, predicted, strict=True):
        runs = np.array([0, *mask.runs])
        places, ones = np.cumsum(runs), np.cumsum(np.where(np.arange(len(runs)) % 2, 0, runs))
        # The number of ones before a place rises by 1 per place within a run of ones and is constant in between.
        before = [np.interp(some, places, ones) for some in ends]
        row[:] = [(found[1::2] - found[:-1:2]).sum() for found in before]
    union = np.array([one.area for one in predicted])[:, None] + [one.area for one in gold] - overlap
    return np.divide(overlap, union, out=np.zeros(overlap.shape), where=union > 0).astype(np.float32)
