"""Group-relative advantages of episodes."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray
Names = Sequence[str] | np.ndarray


def group_advantages(
    rewards: Numbers,
    group_ids: Names,
    *,
    scale: bool = True,
    epsilon: float = 1e-6,
    ddof: int = 1,
    std: float | None = None,
) -> np.ndarray:
    """Returns `(r - mean_group) / (std_group + epsilon)` (GRPO, Shao et al., 2024), by default with the unbiased std.

    Args:
      rewards: One reward per episode. Missing rewards are NaN and count in no mean or std.
      group_ids: One id per reward. Groups may have any size and order. The advantage in a group of one is 0.
      scale: Whether to divide by the std; Dr. GRPO does not.
      epsilon: Number at least 0.
      ddof: Difference between the group's size and the std's divisor, 0 or 1.
      std: Number to scale by in place of each group's std.

    Returns:
      float32 [episodes]; 0 for an episode without a reward and in a group with `zero_variance`.
    """
    known = ~np.isnan(rewards)
    values = np.where(known, rewards, 0.0)
    index, flat = _flat_groups(rewards, group_ids)
    counts = np.bincount(index, known)
    centred = values - (np.bincount(index, values) / np.maximum(counts, 1))[index]
    # Without the mask, the rounding of the mean of equal rewards would be an advantage, of up to 1 if epsilon is 0.
    centred = np.where(known & ~flat[index], centred, 0.0)
    if scale:
        stds = np.sqrt(np.bincount(index, centred**2) / np.maximum(counts - ddof, 1)) if std is None else std
        centred = centred / np.where(flat, 1.0, stds + epsilon)[index]
    return centred.astype(np.float32)


def baseline_advantages(
    rewards: Numbers,
    group_ids: Names,
    baseline: Numbers,
    baseline_ids: Names,
    *,
    scale: bool = True,
    epsilon: float = 1e-6,
    ddof: int = 1,
    std: float | None = None,
) -> np.ndarray:
    """Returns `(r - mean) / (std + epsilon)` with the mean and std of other episodes, `baseline`, of the same group.

    As in LUFFY (Yan et al., 2025, `compute_grpo_outcome_advantage_split`), a std of 0 is replaced by 1, and a baseline of one
    episode has mean 0 and std 1.

    Args:
      rewards, group_ids, scale, epsilon, ddof, std: As in `group_advantages`.

    Returns:
      float32 [episodes]; 0 for an episode without a reward, and in a group whose baseline has no reward.
    """
    found = np.zeros(len(rewards))
    for index, (reward, group) in enumerate(zip(rewards, group_ids, strict=True)):
        known = [r for r, other in zip(baseline, baseline_ids, strict=True) if other == group and not np.isnan(r)]
        if np.isnan(reward) or not known:
            continue
        if len(known) == 1:
            mean, spread = 0.0, 1.0
        else:
            mean = float(np.mean(known))
            spread = 0.0 if zero_variance(known) else float(np.std(known, ddof=ddof))
        if std is not None:
            spread = std
        found[index] = (reward - mean) / ((spread or 1.0) + epsilon if scale else 1.0)
    return found.astype(np.float32)


def pooled_advantages(
    rewards: Numbers, pool: Numbers, *, scale: bool = True, epsilon: float = 1e-6, ddof: int = 1
) -> np.ndarray:
    """Returns `(r - mean) / (std + epsilon)` with the mean and std of `pool`, which has no missing rewards.

    Returns:
      float32 [episodes]; 0 for an episode without a reward, and if the pool has `zero_variance`.
    """
    if zero_variance(pool):
        return np.zeros(len(rewards), np.float32)
    centred = np.nan_to_num(np.asarray(rewards, float) - np.mean(pool))
    return (centred / (np.std(pool, ddof=ddof) + epsilon if scale else 1.0)).astype(np.float32)


def earned_above(rewards: Numbers, without: Numbers, weight: float) -> np.ndarray:
    """Returns `max(r - weight * b, 0)` for the rewards r of a group, where b is the mean of `without`.

    Args:
      rewards, without: Rewards of the members with and without the image. Missing ones are NaN.

    Returns:
      float64 [members]; NaN for a missing reward, and for all if the members without the image have none.
    """
    known = np.asarray(without, float)
    known = known[~np.isnan(known)]
    return np.maximum(np.asarray(rewards, float) - weight * (known.mean() if len(known) else np.nan), 0)


def zero_variance(rewards: Iterable[float] | np.ndarray) -> bool:
    """Returns whether a group's rewards are equal up to rounding or missing (NaN), so that its policy gradient is zero."""
    known = [reward for reward in rewards if not np.isnan(reward)]
    return not known or math.isclose(min(known), max(known), rel_tol=1e-12, abs_tol=1e-9)


def zero_variance_share(rewards: Numbers, group_ids: Names) -> float:
    """Returns the share of groups with `zero_variance`."""
    return float(np.mean(_flat_groups(rewards, group_ids)[1]))


def _flat_groups(rewards: Numbers, group_ids: Names) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index of each reward's group, and whether each group has `zero_variance`."""
    _, index = np.unique(np.asarray(group_ids), return_inverse=True)
    by_group: list[list[float]] = [[] for _ in range(index.max(initial=-1) + 1)]
    for reward, group in zip(rewards, index, strict=True):
        by_group[group].append(reward)
    return index, np.array([zero_variance(group) for group in by_group], bool)


def length_penalty(tokens: int, start: int, end: int) -> float:
    """Returns 0 up to `start` tokens and -1 from `end` on, linear in between (DAPO, Yu et al., 2025, equation 13)."""
    return -float(np.clip((tokens - start) / (end - start), 0, 1))
