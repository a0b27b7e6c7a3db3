"""Scores of predicted masks against expert ones, under rules with a version: `vrt/1` and `vrt-strict/1`.

Each rule assigns predicted masks to gold masks, one to one, separately in the reasoning and in the answer. Scores are pooled
over the masks of all samples, not averaged by sample:

  R-LQ     share of the reasoning's gold masks that are found: IoU above 0.5
  R-SQ     mean IoU of the found ones
  A-mIoU   mean IoU of the answer's gold masks; 0 for a missing one
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.statistics import Interval, score_interval
from vitar_jax.processing.masks import Masks, best_pairs, iou_matrix

FOUND = 0.5  # an IoU above it finds a mask


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """A named rule.

    Attributes:
      counts_unasked: Whether a predicted mask that no one asked for counts as a gold mask of IoU 0. That is one which the
        assignment leaves over and which finds no gold mask; a second mask of a found object is not counted.
    """

    name: str
    version: int
    counts_unasked: bool

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


MASK_RULES = {rule.name: rule for rule in (MaskRule("vrt", 1, False), MaskRule("vrt-strict", 1, True))}


def find_mask_rule(name: str) -> MaskRule:
    """Returns a rule by name, with or without its version.

    Raises:
      ConfigError: If there is no such rule, or it has another version.
    """
    known = {key: rule for rule in MASK_RULES.values() for key in (rule.name, str(rule))}
    if name not in known:
        raise ConfigError(f"mask rule: got {name!r}, expected one of {', '.join(map(str, MASK_RULES.values()))}")
    return known[name]


@dataclasses.dataclass(frozen=True)
class MatchedMasks:
    """The masks of one part of an episode, assigned to each other.

    Attributes:
      ious: IoU of each gold mask with its predicted mask, 0 without one.
      unasked: Number of predicted masks that no one asked for.
    """

    ious: tuple[float, ...] = ()
    unasked: int = 0


@dataclasses.dataclass(frozen=True)
class MaskSample:
    """One sample.

    Attributes:
      image: The image, or the patient, by which intervals cluster samples.
      classes: Classes of the question, in each of which the sample counts.
    """

    image: str
    reasoning: MatchedMasks
    answer: MatchedMasks
    classes: tuple[str, ...] = ()


def match_masks(predicted: Masks, gold: Masks) -> MatchedMasks:
    """Assigns predicted masks to gold masks; see `best_pairs`.

    Args:
      predicted, gold: Masks of one image, at the same size.
    """
    ious = np.zeros(len(gold))
    if not len(predicted):
        return MatchedMasks(tuple(ious.tolist()))
    matrix = iou_matrix(predicted, gold)
    rows, columns = best_pairs(matrix)
    ious[columns] = matrix[rows, columns]
    left_over = np.ones(len(predicted), bool)
    left_over[rows] = False
    finds_none = ~(matrix > FOUND).any(axis=1)
    return MatchedMasks(tuple(ious.tolist()), int((left_over & finds_none).sum()))


Score = Literal["R-LQ", "R-SQ", "A-mIoU"]


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A score over all masks that it counts.

    Attributes:
      value: From 0 to 1, or None if there are no masks to score.
      masks: Number of masks.
      interval: 95 %, clustered by image.
    """

    value: float | None
    masks: int
    interval: Interval | None


def mask_scores(samples: Iterable[MaskSample], rule: MaskRule) -> dict[Score, Pooled]:
    """Returns the scores of samples under a rule. The published code prints 0 where there are no masks to score."""
    samples = list(samples)
    of_reasoning = _pool(((sample.image, sample.reasoning) for sample in samples), rule)
    of_answers = _pool(((sample.image, sample.answer) for sample in samples), rule)
    return {
        "R-LQ": _mean([(float(iou > FOUND), image) for iou, image in of_reasoning]),
        "R-SQ": _mean([(iou, image) for iou, image in of_reasoning if iou > FOUND]),
        "A-mIoU": _mean(of_answers),
    }


def mask_scores_by_class(samples: Iterable[MaskSample], rule: MaskRule) -> dict[str, dict[Score, Pooled]]:
    """Returns the scores of each class of questions, in alphabetical order. A sample counts in each of its classes."""
    samples = list(samples)
    classes = sorted({name for sample in samples for name in sample.classes})
    return {name: mask_scores([sample for sample in samples if name in sample.classes], rule) for name in classes}


def _pool(parts: Iterable[tuple[str, MatchedMasks]], rule: MaskRule) -> list[tuple[float, str]]:
    """Returns the IoU of each mask that a rule counts, with its image."""
    return [
        (iou, image)
        for image, matched in parts
        for iou in (*matched.ious, *[0.0] * (matched.unasked if rule.counts_unasked else 0))
    ]


def _mean(values: Sequence[tuple[float, str]]) -> Pooled:
    if not values:
        return Pooled(None, 0, None)
    ious, images = zip(*values, strict=True)
    return Pooled(math.fsum(ious) / len(ious), len(ious), score_interval(ious, images))
