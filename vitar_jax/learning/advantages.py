"""Advantages relative to the group that an episode belongs to."""

from collections.abc import Iterable, Sequence

import numpy as np


def group_advantages(
    rewards: Sequence[float], group_ids: Sequence[str], *, scale: bool = True, epsilon: float = 1e-6, ddof: int = 1
) -> np.ndarray:
    """`(r - mean_group) / (std_group + epsilon)` (GRPO, Shao et al., 2024), with the unbiased std by default, as its peers.

    Args:
      rewards: NaN where there is none; it counts in no mean and no std.
      group_ids: one a reward; groups may have any size and order. A group of one gets 0.
      scale: divide by the std; Dr. GRPO does not.
      ddof: what the std's divisor is less than the group's size, 0 or 1.

    Returns:
      float32 [episodes]; 0 for one without a reward.
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
    """Whether a group's rewards are all equal, but for rounding, or missing (NaN): nothing is learnt from it."""
    return len({round(reward, 9) for reward in rewards if not np.isnan(reward)}) <= 1


def zero_variance_share(rewards: Sequence[float], group_ids: Sequence[str]) -> float:
    """Share of groups from which nothing is learnt."""
    by_group: dict[str, list[float]] = {}
    for reward, group in zip(rewards, group_ids, strict=True):
        by_group.setdefault(group, []).append(reward)
    return float(np.mean([zero_variance(group) for group in by_group.values()]))


def length_penalty(tokens: int, start: int, end: int) -> float:
    """0 up to `start` tokens, -1 from `end` on, a line between (DAPO, Yu et al., 2025, equation 13)."""
    return -float(np.clip((tokens - start) / (end - start), 0, 1))
