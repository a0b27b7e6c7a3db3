"""Group-relative advantages of episodes."""

from collections.abc import Iterable, Sequence

import numpy as np


def group_advantages(
    rewards: Sequence[float], group_ids: Sequence[str], *, scale: bool = True, epsilon: float = 1e-6, ddof: int = 1
) -> np.ndarray:
    """Returns `(r - mean_group) / (std_group + epsilon)` (GRPO, Shao et al., 2024), by default with the unbiased std.

    Args:
      rewards: One reward per episode. Missing rewards are NaN and count in no mean or std.
      group_ids: One id per reward. Groups may have any size and order. The advantage in a group of one is 0.
      scale: Whether to divide by the std; Dr. GRPO does not.
      ddof: Difference between the group's size and the std's divisor, 0 or 1.

    Returns:
      float32 [episodes]; 0 for an episode without a reward.
    """
    known = ~np.isnan(rewards)
    values = np.where(known, rewards, 0.0)
    _, index = np.unique(np.asarray(group_ids), return_inverse=True)
    counts = np.bincount(index, known)
    centred = np.where(known, values - (np.bincount(index, values) / np.maximum(counts, 1))[index], 0.0)
    if scale:
        variance = np.bincount(index, centred**2) / np.maximum(counts - ddof, 1)
        centred = centred / (np.sqrt(variance)[index] + epsilon)
    return centred.astype(np.float32)


def zero_variance(rewards: Iterable[float]) -> bool:
    """Returns whether a group's rewards are equal up to rounding or missing (NaN), so that its policy gradient is zero."""
    return len({round(reward, 9) for reward in rewards if not np.isnan(reward)}) <= 1


def zero_variance_share(rewards: Sequence[float], group_ids: Sequence[str]) -> float:
    """Returns the share of groups with `zero_variance`."""
    by_group: dict[str, list[float]] = {}
    for reward, group in zip(rewards, group_ids, strict=True):
        by_group.setdefault(group, []).append(reward)
    return float(np.mean([zero_variance(group) for group in by_group.values()]))


def length_penalty(tokens: int, start: int, end: int) -> float:
    """Returns 0 up to `start` tokens and -1 from `end` on, linear in between (DAPO, Yu et al., 2025, equation 13)."""
    return -float(np.clip((tokens - start) / (end - start), 0, 1))
