"""cuDNN's flash attention for NVIDIA GPUs, in bf16 or fp16, with heads up to 128 wide.

Logits of all queries never exist at once. The public API takes the length of a row, but no segments.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.kernels.backend import BackEnd, Cached, kept
from vitar_jax.models.kernels.xla import attend_cached


def cudnn_causal(
    q: Float[Array, "B S H E"], k: Float[Array, "B S K E"], v: Float[Array, "B S K E"], segment_ids: Int[Array, "B S"]
) -> Float[Array, "B S H E"]:
    """Returns causal attention in rows of one segment followed by padding. A row of several segments is NaN."""
    lengths = jnp.sum(segment_ids == 1, axis=-1)
    fits = (segment_ids == (jnp.arange(segment_ids.shape[-1]) < lengths[:, None])).all(axis=-1)
    return jnp.where(fits[:, None, None, None], _flash(q, k, v, lengths, causal=True), jnp.nan)


def cudnn_full(
    q: Float[Array, "B S H E"], k: Float[Array, "B S H E"], v: Float[Array, "B S H E"], valid: Bool[Array, "B S"]
) -> Float[Array, "B S H E"]:
    """Returns attention of every position to the valid positions, by sorting the valid ones to the front and back again."""
    order = jnp.argsort(~valid, axis=-1, stable=True)
    back = jnp.argsort(order, axis=-1)
    q, k, v = (jnp.take_along_axis(x, order[..., None, None], axis=1) for x in (q, k, v))
    out = _flash(q, k, v, jnp.sum(valid, axis=-1), causal=False)
    return jnp.take_along_axis(out, back[..., None, None], axis=1)


def cudnn_masked(
    q: Float[Array, "B T H E"], k: Float[Array, "B S K E"], v: Float[Array, "B S K E"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T H E"]:
    """Returns attention under any mask, forward only. The mask takes memory for queries times keys, but not times heads."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")


def _flash(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, *, causal: bool) -> jax.Array:
    lengths = jnp.maximum(lengths, 1).astype(jnp.int32)  # a row of only padding still needs a softmax
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _cached(
    q: Float[Array, "B T H E"], k: Float[Array, "B T K E"], v: Float[Array, "B T K E"], cached: Cached
) -> Float[Array, "B T H E"]:
    return cudnn_masked(q, cached.keys, cached.values, cached.mask(q.shape[1]))


CUDNN = BackEnd(
    "cudnn",
    causal=lambda segment_ids: kept(lambda q, k, v: cudnn_causal(q, k, v, segment_ids)),
    full=lambda valid: kept(lambda q, k, v: cudnn_full(q, k, v, valid)),
    cached=_cached,
    decode=attend_cached,
    platform="gpu",
    dtypes=("bfloat16", "float16"),
    segments=False,
    mark="__cudnn$fmha",
)
