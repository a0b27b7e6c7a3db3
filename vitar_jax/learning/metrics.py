"""Metrics of rollouts, by the names in the log."""

from collections import defaultdict
from collections.abc import Sequence
from typing import get_args

import numpy as np

from vitar_jax.episodes.actions import ErrorKind
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.learning.advantages import earned_above, zero_variance, zero_variance_share
from vitar_jax.learning.rewards import FAILURES, Failure
from vitar_jax.runtime.distributed import mean_over_processes

Scalars = dict[str, float]

# Metrics that figures show, in words.
_TITLES = {
    "actor/entropy": "entropy per token, nats",
    "actor/loss": "loss",
    "actor/masks/iou": "IoU of the masks",
    "counterfactual/added": "reward that the lesion adds",
    "expert/low_probability": "expert's tokens below 5 %",
    "expert/probability": "probability of the expert's tokens",
    "reward/mean": "reward",
    "rollout/action_success": "first turns that call a tool",
    "rollout/gazes": "gazes per episode",
    "tool_turns": "turns that call a tool",
}


def metric_title(metric: str) -> str:
    """Returns a metric's name in words, for figures; those of probes are of held-out samples."""
    if metric.startswith("probe/"):
        return f"{metric_title(metric.removeprefix('probe/'))}, held out"
    if metric in _TITLES:
        return _TITLES[metric]
    return metric.replace("reward/", "reward for ").replace("/", ": ").replace("_", " ")


def rollout_scalars(
    trajectories: Sequence[Trajectory],
    failures: Sequence[Failure | None],
    parts: Sequence[str],
    *,
    gazes: bool = False,
    masks: bool = False,
) -> Scalars:
    """Returns means over the trajectories of all processes, which are the same in each process.

    Args:
      failures: One per trajectory: the failure of its reward, or None.
      parts: Names of the rewards' parts.
      gazes: Whether to include `rollout/gazes`, the number of turns whose tool ran on boxes.
      masks: Whether to include `rollout/masks`, the number of masks, and `rollout/masks_missing`, the number of `[SEG]` tokens
        without one.
    """
    rewards = [t.rewards for t in trajectories if t.rewards is not None]
    errors = [[turn.error[0] for turn in t.turns if turn.error] for t in trajectories]
    ids = [t.group_id for t in trajectories]
    flat = [zero_variance_share([t.reward for t in trajectories], ids)] if ids else []
    numbers = {
        "reward/mean": [sum(r.values()) for r in rewards],
        **{f"reward/{part}": [r[part] for r in rewards] for part in parts},
        "reward/failed": [failure is not None for failure in failures],
        **{f"reward/failed/{kind}": [failure == kind for failure in failures] for kind in FAILURES},
        "rollout/action_success": [bool(t.turns) and t.turns[0].carried_out for t in trajectories],
        "rollout/answered": [t.predicted_answer is not None for t in trajectories],
        "rollout/two_rounds": [len(t.turns) > 1 for t in trajectories],
        "rollout/box_area": [area for t in trajectories for area in first_box_areas(t)],
        **{f"rollout/error/{kind}": [kinds.count(kind) for kinds in errors] for kind in get_args(ErrorKind)},
        "rollout/zero_variance_groups": flat,
        "rollout/tokens": [sum(t.loss_mask) for t in trajectories],
        "rollout/cut_off": [t.cut_off for t in trajectories],
        **({"rollout/gazes": [_gazes(t) for t in trajectories]} if gazes else {}),
    }
    if masks:
        made = [[mask.mask is not None for turn in t.turns for mask in turn.masks] for t in trajectories]
        numbers["rollout/masks"] = [sum(own) for own in made]
        numbers["rollout/masks_missing"] = [len(own) - sum(own) for own in made]
    return mean_over_processes(numbers)


def expert_scalars(trajectories: Sequence[Trajectory], missing: Sequence[float], parts: Sequence[str]) -> Scalars:
    """Returns means over the expert's trajectories of all processes, which are the same in each process.

    `expert/flat_groups` is the share of samples whose searches are worth the same. `expert/distinct` is the share of a sample's
    searches that differ.

    Args:
      missing: Share of the expected episodes that each group lacks.
      parts: Names of the rewards' parts.
    """
    rewards = [t.rewards for t in trajectories if t.rewards is not None]
    groups = defaultdict(list)
    for trajectory in trajectories:
        groups[trajectory.group_id].append(trajectory)
    numbers = {
        "expert/reward/mean": [sum(r.values()) for r in rewards],
        **{f"expert/reward/{part}": [r[part] for r in rewards] for part in parts},
        "expert/flat_groups": [zero_variance(t.reward for t in group) for group in groups.values()],
        "expert/distinct": [len({t.token_ids for t in group}) / len(group) for group in groups.values()],
        "expert/missing": missing,
        "expert/gazes": [_gazes(t) for t in trajectories],
        "expert/tokens": [sum(t.loss_mask) for t in trajectories],
    }
    return mean_over_processes(numbers)


def counterfactual_scalars(trajectories: Sequence[Trajectory], parts: Sequence[str], weight: float) -> Scalars:
    """Returns what members without the image earn, over the groups of all processes, as the same scalars in each process.

    `counterfactual/added` is the mean reward with the image minus that without it. `counterfactual/unpaid_groups` is the share
    of groups in which all members with the image are paid alike, so that nothing is learnt from them.

    Args:
      trajectories: Episodes of complete groups.
      parts: Names of the rewards' parts.
      weight: Weight of the mean reward without the image in what an episode is paid for.
    """
    rewards = [t.rewards for t in trajectories if t.stream == "counterfactual" and t.rewards is not None]
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trajectory in trajectories:
        groups[trajectory.group_id][trajectory.stream].append(trajectory.reward)
    both = [(np.array(group["on_policy"]), np.array(group["counterfactual"])) for group in groups.values()]
    known = [(real[~np.isnan(real)], without[~np.isnan(without)]) for real, without in both]
    numbers = {
        "counterfactual/reward/mean": [sum(r.values()) for r in rewards],
        **{f"counterfactual/reward/{part}": [r[part] for r in rewards] for part in parts},
        "counterfactual/added": [real.mean() - without.mean() for real, without in known if len(real) and len(without)],
        "counterfactual/unpaid_groups": [zero_variance(earned_above(*group, weight)) for group in both],
    }
    return mean_over_processes(numbers)


def _gazes(trajectory: Trajectory) -> int:
    return sum(turn.carried_out for turn in trajectory.turns)


def first_box_areas(trajectory: Trajectory) -> list[float]:
    """Returns the areas of the first look's boxes as shares of its image; empty without a look."""
    look = trajectory.first_look
    if look is None:
        return []
    width, height = trajectory.images[look.image].pixels.size
    # A tool may accept boxes that reach beyond the image.
    return [min(1.0, box.area / (width * height)) for box in look.boxes]
