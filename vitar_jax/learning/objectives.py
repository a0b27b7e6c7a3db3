"""Losses over token log-probabilities. Denominators are those of the whole batch, so no split of it changes a loss.

Every function takes `count`, the policy tokens of the whole batch where it is given a part of one; None: those that it sees.
Losses and means of parts add up to those of the whole.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Metrics = dict[str, Array]
LARGEST = ("ratio_max", "logprob_gap_max")  # metrics of parts whose largest counts; others add up


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"], count: Int[Array, ""] | None = None) -> Float[Array, ""]:
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask) if count is None else count, 1)


def sft_loss(
    logprobs: Float[Array, "*B S"], loss_mask: Bool[Array, "*B S"], count: Int[Array, ""] | None = None
) -> tuple[Float[Array, ""], Metrics]:
    """Mean negative log-probability of policy-authored tokens."""
    loss = -masked_mean(logprobs, loss_mask, count)
    return loss, {"loss": loss}


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """The clipped objective's numbers; ViTAR's published run used the defaults, with one update a rollout.

    Attributes:
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      scale_advantages: divide by the group's std (`epsilon` is added to it).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    scale_advantages: bool = True
    epsilon: float = 1e-6


def grpo_loss(
    logprobs: Float[Array, "*B S"],
    old_logprobs: Float[Array, "*B S"],
    advantages: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    config: GRPOConfig,
    count: Int[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """PPO's clipped surrogate, averaged over policy tokens of the whole batch (DAPO's token mean).

    `-min(r A, clip(r, 1 - low, 1 + high) A)` with `r = exp(logprobs - old_logprobs)`.
    """
    ratio = jnp.exp(jnp.where(loss_mask, logprobs - old_logprobs, 0.0))
    clipped = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
    loss = masked_mean(-jnp.minimum(ratio * advantages, clipped * advantages), loss_mask, count)
    metrics = {
        "loss": loss,
        "clip_fraction": masked_mean((ratio != clipped).astype(jnp.float32), loss_mask, count),
        "ratio_max": jnp.max(ratio),
        "approx_kl": masked_mean(ratio - 1 - jnp.log(ratio), loss_mask, count),
    }
    return loss, metrics


def sampler_gap(
    logprobs: Float[Array, "*B S"],
    sampler_logprobs: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    count: Int[Array, ""] | None = None,
) -> Metrics:
    """How far the trainer's log-probabilities are from the sampler's, and moments of the importance weights they make."""
    difference = jnp.where(loss_mask, logprobs - sampler_logprobs, 0.0)
    ratio = jnp.exp(difference)
    return {
        "logprob_gap_mean": masked_mean(jnp.abs(difference), loss_mask, count),
        "logprob_gap_max": jnp.max(jnp.abs(difference)),
        "ratio_mean": masked_mean(ratio, loss_mask, count),
        "ratio_square": masked_mean(ratio**2, loss_mask, count),
    }
