"""Selects the tokens that a loss treats differently: those with high entropies, and those of Clip-Cov and KL-Cov.

Clip-Cov and KL-Cov (Cui et al., 2025, arXiv 2505.22617) select tokens whose updates lower the entropy most. A token's
covariance is the product of its advantage and its log-probability, both less their means over the policy tokens of the batch.

Tokens are selected once per batch, before its first update and with the weights at its start, so that a step does not depend on
how the batch is split. verl and TRL instead select tokens in each micro-batch, with the current weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from vitar_jax.learning.grpo_loss import GRPOLossConfig


def select_tokens(
    logprobs: Float[Array, "*B S"],
    advantages: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    config: GRPOLossConfig,
    draws: Int[Array, "*B S"],
) -> Bool[Array, "*B S"]:
    """Returns which tokens of a full batch are selected: a share of its policy tokens, and at least one.

    "kl" selects the tokens of the largest covariances. "clip" draws from the tokens whose covariance is within the bounds; if
    there are fewer, selects them all.

    Args:
      draws: A number per token that orders the tokens for "clip"; see `draws_of`.
    """
    count = jnp.sum(loss_mask)
    centred = [x - jnp.sum(x, where=loss_mask) / jnp.maximum(count, 1) for x in (advantages, logprobs)]
    covariances = centred[0] * centred[1]
    if config.covariance == "kl":
        eligible, order = loss_mask, covariances
    else:
        eligible = loss_mask & (covariances > config.covariance_low) & (covariances < config.covariance_high)
        order = draws.astype(covariances.dtype)
    order = jnp.where(eligible, order, -jnp.inf)
    wanted = jnp.maximum(jnp.floor(config.covariance_share * count).astype(int), 1)
    least = jnp.sort(order.reshape(-1), descending=True)[wanted - 1]
    return eligible & (order >= least)


def uncertain_tokens(
    entropies: Float[Array, "*B S"], loss_mask: Bool[Array, "*B S"], share: float
) -> Bool[Array, "*B S"]:
    """Returns the `share` of a full batch's policy tokens with the highest entropies (Wang et al., 2025, arXiv 2506.01939).

    Their lowest entropy is the quantile 1 - share, with linear interpolation, as in TRL.
    """
    least = jnp.nanquantile(jnp.where(loss_mask, entropies, jnp.nan), 1 - share)
    return loss_mask & (entropies >= least)


def draws_of(
    token_ids: Int[Array, "*B S"], positions: Int[Array, "*B S"], logprobs: Float[Array, "*B S"]
) -> UInt32[Array, "*B S"]:
    """Returns a pseudo-random number per token, wherever in the batch it lies.

    Args:
      logprobs: As the sampler recorded them, which no later computation changes.
    """
    bits = jax.lax.bitcast_convert_type(logprobs.astype(jnp.float32), jnp.uint32)
    mixed = jnp.zeros(token_ids.shape, jnp.uint32)
    for values in (token_ids.astype(jnp.uint32), positions.astype(jnp.uint32), bits):
        mixed = (mixed ^ values) * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
        mixed = mixed ^ (mixed >> 13)
    return mixed
