"""Counterfactual members of a group: episodes of the same sample without its image, which tell what the image earned.

Where training questions give their answers away, a policy learns to answer from the text, and its reward rises while the image
matters less and less (arXiv 2603.03437). The advantage below pays an episode only for what it earned above the members without
the image. It is ours; the papers that we know measure the failure.

For a group with rewards r_i on the sample as it is, and the mean reward b of its members under the intervention:

    pay_i = max(r_i - weight * b, 0)
    A_i   = (pay_i - mean(pay)) / (std(r) + epsilon)

If a right answer earns 1, a wrong one 0, and the weight is 1, then A_i is the advantage of GRPO times 1 - b:

    r             1 1 0 0        1 1 0 0        1 1 0 0
    b                 0            0.5              1        b = 1: the question alone gives the answer away
    A (ddof 0)    1 1 -1 -1    .5 .5 -.5 -.5    0 0 0 0

The expected gradient is that of the probability of being right with the image and wrong without it, where the second factor is
held fixed. Two simpler forms would teach nothing of this. A constant taken from all rewards of a group cancels with its mean,
hence the maximum with 0. A division by the std of the pay would cancel 1 - b, hence the std of the rewards.

Parts of a reward that members without the image also earn, such as that of the format, are paid only above what they earn.
"""

import dataclasses
from typing import Any

import numpy as np

from vitar_jax.data.interventions import find_change
from vitar_jax.errors import ConfigError
from vitar_jax.learning.advantages import Names, Numbers, earned_above, zero_variance
from vitar_jax.learning.grpo_loss import refuse


@dataclasses.dataclass(frozen=True)
class CounterfactualConfig:
    """Further members of each group, which are played without the image.

    Attributes:
      intervention: What is taken from the sample, such as "blank" or "region_erased" (`data/interventions.py`). A sample that
        lacks what the intervention needs is skipped and counted, like one whose image cannot be read.
      episodes: Number of these members per group, beside `group_size` members with the image.
      weight: Weight of their mean reward. With 2, a right answer earns nothing as soon as half of them are right.
      learn: Whether the policy also learns to earn less without the image. Such a member, with reward r, is paid what
        others earn above it: the mean over i of max(r_i - weight * r, 0). A policy can also raise this by wrong answers to
        grey images, so the default leaves these members out of the batch.
    """

    intervention: str = "blank"
    episodes: int = 2
    weight: float = 1.0
    learn: bool = False

    def __post_init__(self) -> None:
        try:
            find_change(self.intervention)
        except ConfigError as error:
            raise ConfigError(f"objective.counterfactual.intervention: {error}") from error
        wrong = {"episodes: must be positive": self.episodes < 1, "weight: must be positive": not self.weight > 0}
        refuse({f"counterfactual.{message}": holds for message, holds in wrong.items()})


def counterfactual_advantages(
    rewards: Numbers,
    group_ids: Names,
    without: np.ndarray,
    config: CounterfactualConfig,
    *,
    scale: bool = True,
    epsilon: float = 1e-6,
    ddof: int = 1,
    std: float | None = None,
) -> np.ndarray:
    """Returns the advantages of this module.

    Args:
      rewards, group_ids, scale, epsilon, ddof, std: As in `group_advantages`.
      without: Which episodes are played without the image, bool [episodes].

    Returns:
      float64 [episodes]; 0 for an episode without a reward, in a group without rewards of one kind, and where all members of a
      kind are paid alike.
    """
    rewards, ids = np.asarray(rewards, float), np.asarray(group_ids)
    scaling: dict[str, Any] = dict(scale=scale, epsilon=epsilon, ddof=ddof, std=std)
    found = np.zeros(len(rewards))
    for group in np.unique(ids):
        real, changed = (ids == group) & ~without, (ids == group) & without
        found[real] = _centred(earned_above(rewards[real], rewards[changed], config.weight), rewards[real], **scaling)
        if config.learn:
            known = rewards[real][~np.isnan(rewards[real])]
            above = np.maximum(known - config.weight * rewards[changed][:, None], 0)
            pay = above.mean(axis=1) if len(known) else np.full(len(above), np.nan)
            found[changed] = _centred(pay, rewards[changed], **scaling)
    return found


def _centred(
    pay: np.ndarray, rewards: np.ndarray, *, scale: bool, epsilon: float, ddof: int, std: float | None
) -> np.ndarray:
    """Returns a group's pay minus its mean, over the std of the rewards."""
    known = ~np.isnan(pay)
    if zero_variance(pay):
        return np.zeros(len(pay))
    centred = np.where(known, pay - pay[known].mean(), 0.0)
    if not scale:
        return centred
    return centred / ((np.std(rewards[known], ddof=ddof) if std is None else std) + epsilon)
