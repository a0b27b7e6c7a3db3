"""Rewards of VRT's traces: their form, and the masks of the answer (Visual Reasoning Tracer, arXiv:2512.05091).

The published code has bugs, which `format_published` and `answer_published` reproduce. `form` and `answer_masks` compute what
it intends. `rewards.py` registers the rewards.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vitar_jax.episodes.object_masks import Part
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.processing.masks import best_pairs, iou_matrix, nearest

MAP = 256  # side of the maps on which masks are compared
KEPT = 0.5  # a pair of masks counts if its IoU is above
_PENALTY = 0.1  # for every mask of either side that is in no pair

_PUBLISHED = re.compile(r"<think>.*?\[SEG\].*?</think>.*?<answer>.*?\[SEG\].*?</answer>.*?", re.DOTALL)
_PUBLISHED_ANSWER = re.compile(r"<think>.*?</think>.*?<answer>.*?\[SEG\].*?</answer>.*?", re.DOTALL)


def form(text: str, parts: Sequence[Part | None]) -> float:
    """Returns 1 if a turn is one reasoning and one answer with a mask in each, 0.5 if only its answer has one, and 0 otherwise.

    Args:
      text: Text of the turn.
      parts: The part of the turn in which each mask lies; see `trace_parser.parts`.
    """
    tags = re.findall(r"</?(?:think|answer)>", text)
    if tags != ["<think>", "</think>", "<answer>", "</answer>"] or not text.startswith("<think>") or "answer" not in parts:
        return 0.0
    return 1.0 if "reasoning" in parts else 0.5


def format_published(text: str) -> float:
    """Returns the format reward of the published code, whose pattern reads across tags and counts `[SEG]` as text."""
    if _PUBLISHED.fullmatch(text):
        return 1.0
    return 0.5 if _PUBLISHED_ANSWER.fullmatch(text) else 0.0


def answer_masks(ious: Float[np.ndarray, "predicted gold"]) -> float:
    """Returns the mean IoU of the best one-to-one pairs with IoU above `KEPT`, less 0.1 for every mask in no such pair.

    0 if no pair is above, and if a side has no masks.
    """
    return _mean_kept(ious, *best_pairs(ious))


def answer_published(ious: Float[np.ndarray, "predicted gold"]) -> float:
    """Returns the answer reward of the published code, which pairs the first masks if a side has only one."""
    if 1 in ious.shape and ious.size:
        return _mean_kept(ious, np.array([0]), np.array([0]))
    return answer_masks(ious)


def _turn(trajectory: Trajectory) -> tuple[str, list[Part | None]]:
    """Returns the text of the last turn, and the part in which each of its masks lies."""
    if not trajectory.turns:
        return "", []
    return trajectory.turns[-1].text, [one.part for one in trajectory.turns[-1].masks]


def _ious(trajectory: Trajectory) -> Float[np.ndarray, "predicted gold"]:
    """Returns the IoU of each mask of the last turn's answer with each gold mask of the answer, on maps of side `MAP`."""
    made = [one.mask for turn in trajectory.turns[-1:] for one in turn.masks if one.part == "answer" and one.mask is not None]
    gold = [one.mask for one in trajectory.objects if one.in_answer]
    maps = (np.array([nearest(mask.array, MAP, MAP) for mask in masks]).reshape(-1, MAP, MAP) for masks in (made, gold))
    return iou_matrix(*maps)


def vrt(trajectory: Trajectory) -> dict[str, float]:
    """Returns the parts of VRT's reward, without the published code's bugs: `form` and `answer_masks` of the last turn.

    The published code compares masks of 256 x 256 before they are resized to the image. A trajectory has masks of the image's
    size, which are resized again, so that pixels at an outline may differ.
    """
    text, parts = _turn(trajectory)
    return {"format": form(text, parts), "answer": answer_masks(_ious(trajectory))}


def vrt_format_published(trajectory: Trajectory) -> dict[str, float]:
    """Returns the published code's reward of the last turn's form."""
    return {"format_published": format_published(_turn(trajectory)[0])}


def vrt_answer_published(trajectory: Trajectory) -> dict[str, float]:
    """Returns the published code's reward of the last turn's masks, which is 0 with several answers; see also `vrt`."""
    answers = re.findall(r"<answer>.*?</answer>", _turn(trajectory)[0], re.DOTALL)
    return {"answer_published": answer_published(_ious(trajectory)) if len(answers) == 1 else 0.0}


def _mean_kept(ious: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    kept = [iou for iou in ious[rows, columns] if iou > KEPT]
    if not kept:
        return 0.0
    return float(np.mean(kept)) - _PENALTY * (sum(ious.shape) - 2 * len(kept))
