"""Attention as matrix products and a softmax, on every device, in blocks of queries.

Logits of long rows never exist at once, also not in the backward pass, which recomputes each block's. Up to 1,024 queries and
keys are one block.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.kernels.backend import Attend, BackEnd, Cached, kept
from vitar_jax.models.remat import inputs_kept

BLOCK_LOGITS = 2**20  # per row and head: 64 MiB for an image and the 16 heads of the vision tower
MASKED = -1e30  # finite, so that a row of padding yields a mean, not NaN


def attend(
    q: Float[Array, "*B T H E"],
    k: Float[Array, "*B S K E"],
    v: Float[Array, "*B S K E"],
    mask: Bool[Array, "*B #T S"],
) -> Float[Array, "*B T H E"]:
    """Returns softmax attention with grouped key-value heads. `mask` is true where a query sees a key. Softmax is in fp32."""
    return kept(lambda q, k, v: attend_in_blocks(q, k, v, mask, BLOCK_LOGITS))(q, k, v)


def attend_in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, logits: int) -> jax.Array:
    """Returns the output of `attend`, computed in blocks of queries with at most about `logits` logits per row and head."""
    *batch, length, heads, width = q.shape
    count = -(-length * k.shape[-3] // logits)
    if count == 1:
        return attend_and_show(q, k, v, mask)[0]
    rows = -(-length // count)

    def cut(x: jax.Array, axis: int) -> jax.Array:
        """Moves blocks of `rows` of an axis to the front. The last block is padded with zeros."""
        spare = [(0, count * rows - length if i == axis else 0) for i in range(x.ndim)]
        return jnp.moveaxis(jnp.pad(x, spare).reshape(*x.shape[:axis], count, rows, *x.shape[axis + 1 :]), axis, 0)

    @inputs_kept
    def block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return attend_and_show(q, k.astype(q.dtype), v.astype(q.dtype), mask)[0]

    # All blocks add to the gradients of the keys and values, which are therefore summed in fp32.
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    per_query = mask.shape[-2] == length
    masks = cut(mask, mask.ndim - 2) if per_query else None
    out = jax.lax.map(lambda part: block(part[0], k, v, part[1] if per_query else mask), (cut(q, len(batch)), masks))
    return jnp.moveaxis(out, 0, len(batch)).reshape(*batch, count * rows, heads, width)[..., :length, :, :]


def attend_and_show(
    q: Float[Array, "*B T H E"],
    k: Float[Array, "*B S K E"],
    v: Float[Array, "*B S K E"],
    mask: Bool[Array, "*B #T S"],
) -> tuple[Float[Array, "*B T H E"], Float[Array, "*B K T Q S"]]:
    """Returns the output of `attend` as one block, and its fp32 probabilities. Query head h is (k, q) with h = k * Q + q."""
    *batch, t, h, e = q.shape
    heads = k.shape[-2]
    # Moves heads to the front, for plain matrix products. The query heads of a group are extra rows of one product. Keys are
    # transposed first, so the backward pass never transposes an array of size T x S.
    q = jnp.moveaxis(q.reshape(*batch, t, heads, h // heads, e), -4, -3).reshape(*batch, heads, -1, e)
    k, v = jnp.moveaxis(k, -3, -1), jnp.moveaxis(v, -3, -2)
    logits = jnp.matmul(q, k, preferred_element_type=jnp.float32) * e**-0.5
    mask = mask if mask.shape[-2] == 1 else jnp.repeat(mask, h // heads, axis=-2)
    probs = masked_softmax(logits, mask[..., None, :, :])
    out = probs.astype(v.dtype) @ v
    out = jnp.moveaxis(out.reshape(*batch, heads, t, -1, e), -3, -4)
    return out.reshape(*batch, t, h, e), probs.reshape(*batch, heads, t, h // heads, -1)


@jax.custom_vjp
def masked_softmax(logits: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]) -> Float[Array, "*B T S"]:
    """Returns the softmax over positions where `mask` is true. The backward pass keeps only the result."""
    return jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)


def _softmax_forward(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    probs = masked_softmax(logits, mask)
    return probs, (probs, mask)


def _softmax_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    probs, mask = kept
    mean = jnp.sum(probs * gradient, axis=-1, keepdims=True)
    return jnp.where(mask, probs * (gradient - mean), 0.0), None


masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def causal_mask(segment_ids: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Returns a mask in which each token sees itself and the tokens before it in its segment; segment 0 is padding."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    length = segment_ids.shape[-1]
    return same & jnp.tril(jnp.ones((length, length), bool))[None]


def _causal(segment_ids: Int[Array, "B S"]) -> Attend:
    mask = causal_mask(segment_ids)
    return lambda q, k, v: attend(q, k, v, mask)


def _full(valid: Bool[Array, "B S"]) -> Attend:
    return lambda q, k, v: attend(q, k, v, valid[..., None, :])


def attend_cached(
    q: Float[Array, "B T H E"], k: Float[Array, "B T K E"], v: Float[Array, "B T K E"], cached: Cached
) -> Float[Array, "B T H E"]:
    """Returns the attention of new tokens to a cache, which already contains them."""
    return attend(q, cached.keys, cached.values, cached.mask(q.shape[1]))


XLA = BackEnd("xla", causal=_causal, full=_full, cached=attend_cached, decode=attend_cached)
