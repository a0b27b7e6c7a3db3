"""Splash attention: JAX's Pallas kernel for TPUs, forward and backward.

Logits of all queries never exist at once. Under a mesh, the kernel runs on each device's own rows and heads.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.kernels.backend import Attend, BackEnd, Cached, kept
from vitar_jax.models.kernels.xla import attend_cached
from vitar_jax.models.remat import ATTENTION
from vitar_jax.parallel.mesh import BATCH, bins

_BLOCK = 512  # size of a block of queries and of keys, the default of MaxText
_LANES = 128  # blocks are multiples of it


def splash(
    q: Float[Array, "B T H E"],
    k: Float[Array, "B S K E"],
    v: Float[Array, "B S K E"],
    q_segments: Int[Array, "B T"],
    kv_segments: Int[Array, "B S"],
    *,
    causal_offset: int | None,
) -> Float[Array, "B T H E"]:
    """Returns attention within equal segment numbers.

    Rows are sharded over the mesh axes `data` and `fsdp`, and heads over `tensor`, if these divide them.

    Args:
      causal_offset: Query i sees keys up to i + causal_offset. If None, all keys.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _on_one_device(q, k, v, q_segments, kv_segments, causal_offset=causal_offset)
    rows = BATCH if q.shape[0] % bins(mesh) == 0 else None
    heads = "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None
    tokens = P(rows, None, heads)
    return jax.shard_map(
        partial(_on_one_device, causal_offset=causal_offset),
        in_specs=(tokens, tokens, tokens, P(rows), P(rows)),
        out_specs=tokens,
        check_vma=False,  # the kernel does not say how its results vary over the mesh
    )(q, k, v, q_segments, kv_segments)


def _on_one_device(
    q: jax.Array, k: jax.Array, v: jax.Array, q_segments: jax.Array, kv_segments: jax.Array, *, causal_offset: int | None
) -> jax.Array:
    # Imported here because other back ends do without Pallas, which is a tenth of the start of `infer`.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    length, heads, width = q.shape[1:]
    block_q, block_kv = _block(length), _block(k.shape[1])
    q = _pad((q.astype(jnp.float32) * width**-0.5).astype(q.dtype), block_q)  # the kernel does not scale
    k, v = _pad(k, block_kv), _pad(v, block_kv)
    # Padding has a segment of its own.
    segments = splash_attention_kernel.SegmentIds(_pad(q_segments, block_q, -1), _pad(kv_segments, block_kv, -1))
    shape = (q.shape[1], k.shape[1])
    if causal_offset is None:
        mask: splash_attention_mask.Mask = splash_attention_mask.FullMask(shape)
    else:
        mask = splash_attention_mask.CausalMask(shape, offset=causal_offset)
    kernel: Any = splash_attention_kernel.make_splash_mha(
        mask=splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
    )
    out = jax.vmap(kernel)(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)), segments)
    return jnp.swapaxes(out, 1, 2)[:, :length]


def _block(length: int) -> int:
    return min(_BLOCK, -(-length // _LANES) * _LANES)


def _pad(x: jax.Array, multiple: int, value: int = 0) -> jax.Array:
    """Pads axis 1 to whole blocks."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple)] + [(0, 0)] * (x.ndim - 2), constant_values=value)


def _causal(segment_ids: Int[Array, "B S"]) -> Attend:
    return kept(lambda q, k, v: splash(q, k, v, segment_ids, segment_ids, causal_offset=0))


def _full(valid: Bool[Array, "B S"]) -> Attend:
    everyone, seen = jnp.ones(valid.shape, jnp.int32), valid.astype(jnp.int32)
    return kept(lambda q, k, v: splash(q, k, v, everyone, seen, causal_offset=None))


def _cached(
    q: Float[Array, "B T H E"], k: Float[Array, "B T K E"], v: Float[Array, "B T K E"], cached: Cached
) -> Float[Array, "B T H E"]:
    # The kernel's causal offset is the same for all rows, so the new tokens are appended after the whole cache.
    (rows, length), capacity = q.shape[:2], cached.keys.shape[1]
    old = jnp.arange(capacity)[None] < cached.lengths[:, None]
    seen = jnp.concatenate([old, jnp.arange(length)[None] < cached.counts[:, None]], axis=1)
    keys, values = jnp.concatenate([cached.keys, k], axis=1), jnp.concatenate([cached.values, v], axis=1)
    everyone = jnp.ones((rows, length), jnp.int32)
    return splash(q, keys, values, everyone, seen.astype(jnp.int32), causal_offset=capacity)


SPLASH = BackEnd(
    "splash", causal=_causal, full=_full, cached=_cached, decode=attend_cached, platform="tpu", mark="tpu_custom_call"
)
