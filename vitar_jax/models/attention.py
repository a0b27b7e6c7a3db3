"""Attention, the one entry. Today's back end is XLA, on every device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.remat import attention_value

MASKED = -1e30  # finite, so that a row of padding yields a mean and not NaN


def attend(
    q: Float[Array, "*B T H E"],
    k: Float[Array, "*B S K E"],
    v: Float[Array, "*B S K E"],
    mask: Bool[Array, "*B T S"],
) -> Float[Array, "*B T H E"]:
    """Softmax attention with grouped key-value heads; `mask` is true where a query may look. Softmax in fp32."""
    q, k, v = (attention_value(x) for x in (q, k, v))
    *batch, t, h, e = q.shape
    heads = k.shape[-2]
    q = q.reshape(*batch, t, heads, h // heads, e)
    logits = jnp.einsum("...tkge,...ske->...kgts", q, k, preferred_element_type=jnp.float32) * e**-0.5
    probs = jax.nn.softmax(jnp.where(mask[..., None, None, :, :], logits, MASKED), axis=-1)
    out = jnp.einsum("...kgts,...ske->...tkge", probs.astype(v.dtype), v)
    return attention_value(out.reshape(*batch, t, h, e))


def causal_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Each token sees itself and what stands before it in its own segment; segment 0 is padding."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    length = segment_ids.shape[-1]
    return same & jnp.tril(jnp.ones((length, length), bool))[None]
