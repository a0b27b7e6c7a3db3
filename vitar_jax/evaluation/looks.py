"""What a set of trajectories is worth: answers, and where the model looked."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.regions import Box, centre, iou
from vitar_jax.episodes.trajectory import GOLD_IMAGE, Trajectory
from vitar_jax.errors import DataError
from vitar_jax.evaluation.statistics import wilson_interval

TIGHT = 1.5  # a look is tight when its side is at most this many times the gold box's


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a set of trajectories. Shares lie in [0, 1]; None where nothing could be measured.

    Attributes:
        n: trajectories.
        accuracy: share whose answer matches the reference; no answer is a wrong answer.
        interval: 95% Wilson interval (low, high) of the accuracy.
        iou: mean over trajectories with a gold box; no valid look counts 0.
        centre_error_px: median distance from the look's centre to the gold one's, in pixels of the original,
            over trajectories that have both.
        tight_box_share: share of all trajectories whose look has a side of at most `TIGHT` gold sides,
            a side being the root of the area. It says nothing of whether the look hit.
        action_success: share whose first turn was a tool call that could be carried out.
        answered: share that ended with an answer.
        mean_reward: mean of the summed reward parts, over trajectories that have them.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    iou: float | None
    centre_error_px: float | None
    tight_box_share: float | None
    action_success: float
    answered: float
    mean_reward: float | None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"interval": list(self.interval)}


@dataclasses.dataclass(frozen=True)
class _Look:
    """The first valid look of a trajectory against its gold box: the pair of boxes that agrees best."""

    iou: float
    distance: float
    side_ratio: float


def score(trajectories: Iterable[Trajectory]) -> Scores:
    """Scores of trajectories, read once and one at a time.

    Raises:
        DataError: there are none.
    """
    rewards: list[float] = []
    looks: list[_Look | None] = []  # of trajectories with a gold box
    n = correct = answered = acted = 0
    for trajectory in trajectories:
        correct += is_correct(trajectory)
        answered += trajectory.predicted_answer is not None
        acted += bool(trajectory.turns) and trajectory.turns[0].carried_out
        n += 1
        if trajectory.rewards is not None:
            rewards.append(trajectory.reward)
        if trajectory.boxes:
            looks.append(_first_look(trajectory))
    if n == 0:
        raise DataError("there are no trajectories to score")
    seen = [look for look in looks if look is not None]
    return Scores(
        n=n,
        accuracy=correct / n,
        interval=wilson_interval(correct, n),
        iou=sum(look.iou for look in seen) / len(looks) if looks else None,
        centre_error_px=statistics.median(look.distance for look in seen) if seen else None,
        tight_box_share=sum(look.side_ratio <= TIGHT for look in seen) / n if looks else None,
        action_success=acted / n,
        answered=answered / n,
        mean_reward=math.fsum(rewards) / len(rewards) if rewards else None,
    )


def is_correct(trajectory: Trajectory) -> bool:
    """Whether the episode ended in the reference answer."""
    return exact_match(trajectory.predicted_answer, trajectory.answer)


def _first_look(trajectory: Trajectory) -> _Look | None:
    look = trajectory.first_look
    if look is None or look.image != GOLD_IMAGE:
        return None
    # If no pair overlaps, the nearest one.
    pairs = [_compare(box, gold) for box in look.boxes for gold in trajectory.boxes]
    return max(pairs, key=lambda look: (look.iou, -look.distance))


def _compare(box: Box, gold: Box) -> _Look:
    return _Look(iou(box, gold), math.dist(centre(box), centre(gold)), math.sqrt(box.area / gold.area))
