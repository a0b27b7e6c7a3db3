"""Log-probabilities of tokens: the one function that the sampler's record, the reference and the update share.

The distribution is `log_softmax(where(banned, -inf, logits) / temperature)`. It is computed in fp32, for policy tokens
only, a chunk of tokens at a time, so that (tokens x vocabulary) logits never exist whole.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.attention import MASKED


def shape_logits(
    logits: Float[Array, "*B V"], banned: Bool[Array, " V"], temperature: Float[Array, "*B"]
) -> Float[Array, "*B V"]:
    """fp32 logits of the sampling distribution. Temperature 0 (greedy) keeps the logits of temperature 1."""
    divisor = jnp.where(temperature > 0, temperature, 1.0)[..., None]
    return jnp.where(banned, MASKED, logits.astype(jnp.float32) / divisor)


def token_logprobs(
    hidden_states: Float[Array, "bins R S D"],
    head: Float[Array, "D V"],
    token_ids: Int[Array, "bins R S"],
    loss_mask: Bool[Array, "bins R S"],
    banned: Bool[Array, " V"],
    *,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    chunk: int = 1024,
) -> tuple[Float[Array, "bins R S"], Float[Array, "bins R S"]]:
    """Log-probability of each masked token given what stands before it, and the entropy it was drawn from.

    Args:
      hidden_states: token s is predicted from position s - 1 of its row.
      max_tokens: most masked tokens a bin may hold (known from packing); None allows all of them.
      chunk: tokens whose logits exist at one time.

    Returns:
      logprobs and entropies, fp32, zero outside the mask.
    """
    bins, rows, length, width = hidden_states.shape
    total = rows * length
    count = min(max_tokens or total, total)
    chunk = min(chunk, count)
    padded = -(-count // chunk) * chunk
    before = jnp.roll(hidden_states, 1, axis=2).reshape(bins, total, width)
    flat_mask = loss_mask.reshape(bins, total)
    # Indices of masked tokens, then `total` (out of range) to fill: gathers clip, scatters drop.
    index = jax.vmap(lambda m: jnp.nonzero(m, size=padded, fill_value=total)[0])(flat_mask)
    states = jnp.take_along_axis(before, jnp.minimum(index, total - 1)[..., None], axis=1)
    targets = jnp.take_along_axis(token_ids.reshape(bins, total), jnp.minimum(index, total - 1), axis=1)

    @jax.checkpoint
    def score(states: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = states @ head.astype(states.dtype)
        logits = shape_logits(logits, banned, jnp.full(logits.shape[:-1], temperature))
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], entropy

    def chunked(x: jax.Array) -> jax.Array:  # [bins, n, ...] -> [n / chunk, bins, chunk, ...]
        return jnp.moveaxis(x.reshape(bins, -1, chunk, *x.shape[2:]), 1, 0)

    scored = jax.lax.map(lambda pair: score(*pair), (chunked(states), chunked(targets)))

    def spread(x: jax.Array) -> jax.Array:  # back to token places
        x = jnp.moveaxis(x, 0, 1).reshape(bins, padded)
        return jax.vmap(lambda i, v: jnp.zeros(total).at[i].set(v, mode="drop"))(index, x).reshape(bins, rows, length)

    return spread(scored[0]), spread(scored[1])
