"""Rewards: named parts of a finished trajectory."""

import dataclasses

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.boxes import Box, iou
from vitar_jax.episodes.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class RewardWeights:
    """Weights of ViTAR's reward (published code: 0.2, 0.2, 1.0) and of an IoU part of ours, off by default."""

    action: float = 0.2
    terminate: float = 0.2
    accuracy: float = 1.0
    iou: float = 0.0


def vitar_reward(trajectory: Trajectory, weights: RewardWeights) -> dict[str, float]:
    """ViTAR's reward in weighted parts.

    `action` counts every turn whose tool ran, `terminate` an answer that could be read, `accuracy` its exact match.
    `iou` is that of the first turn's best box with a reference box.
    """
    actions = sum(turn.error is None and bool(turn.boxes_original) for turn in trajectory.turns)
    parts = {
        "action": weights.action * actions,
        "terminate": weights.terminate * (trajectory.predicted_answer is not None),
        "accuracy": weights.accuracy * exact_match(trajectory.predicted_answer, trajectory.answer),
    }
    if weights.iou:
        parts["iou"] = weights.iou * first_box_iou(trajectory)
    return parts


def with_reward(trajectory: Trajectory, weights: RewardWeights) -> Trajectory:
    """The trajectory with ViTAR's reward in its record."""
    return dataclasses.replace(trajectory, rewards=vitar_reward(trajectory, weights))


def first_box_iou(trajectory: Trajectory) -> float:
    """IoU of the first turn's boxes with the reference boxes, the best pair; 0 where the turn was no good."""
    turn = trajectory.turns[0] if trajectory.turns else None
    if turn is None or turn.error is not None:
        return 0.0
    boxes = [Box(*box, frame="original") for box in turn.boxes_original]
    return max((iou(box, gold) for box in boxes for gold in trajectory.boxes), default=0.0)
