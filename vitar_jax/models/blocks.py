"""Blocks that model families share: attention of a vision tower, and decoder layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.config import TextSizes
from vitar_jax.models.kernels.backend import Attend
from vitar_jax.models.layers import Linear, RMSNorm, SwiGLU
from vitar_jax.models.rope import Rotary, rotate


class FusedAttention(nnx.Module):
    """Multi-head attention whose queries, keys and values come from one projection."""

    def __init__(self, width: int, heads: int, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.qkv = Linear(width, 3 * width, axes=("embed", "heads"), bias=True, key=keys[0], std=std)
        self.proj = Linear(width, width, axes=("heads", "embed"), bias=True, key=keys[1], std=std)
        self.heads = heads

    def __call__(self, x: Float[Array, "*B P D"], rotary: Rotary, attend: Attend) -> Float[Array, "*B P D"]:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        q, k, v = (part.reshape(*part.shape[:-1], self.heads, -1) for part in (q, k, v))
        out = attend(rotate(q, rotary), rotate(k, rotary), v)
        return self.proj(out.reshape(x.shape))


class GroupedAttention(nnx.Module):
    """Grouped-query attention (Ainslie et al., 2023).

    Args:
      bias: Whether the projections to queries, keys and values have biases.
      norm_eps: If given, queries and keys are normalised per head before rotation (Qwen3).
    """

    def __init__(self, config: TextSizes, *, bias: bool, norm_eps: float | None, key: jax.Array, std: float | None):
        keys = jax.random.split(key, 4)
        d, e = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads * e, config.num_key_value_heads * e
        self.q_proj = Linear(d, heads, axes=("embed", "heads"), bias=bias, key=keys[0], std=std)
        self.k_proj = Linear(d, kv_heads, axes=("embed", "kv_heads"), bias=bias, key=keys[1], std=std)
        self.v_proj = Linear(d, kv_heads, axes=("embed", "kv_heads"), bias=bias, key=keys[2], std=std)
        self.o_proj = Linear(heads, d, axes=("heads", "embed"), bias=False, key=keys[3], std=std)
        self.q_norm = None if norm_eps is None else RMSNorm(e, norm_eps)
        self.k_norm = None if norm_eps is None else RMSNorm(e, norm_eps)
        self.head_dim = e

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> Float[Array, "B T D"]:
        """Runs the attention of a layer. `attend` attends to the row in training and to a cache in rollout."""
        q, k, v = (proj(x).reshape(*x.shape[:-1], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        out = attend(rotate(q, rotary), rotate(k, rotary), v)
        return self.o_proj(out.reshape(*x.shape[:-1], -1))


class PreNormLayer(nnx.Module):
    """A decoder layer: attention and SwiGLU, each after an RMSNorm and added to its input.

    Args:
      eps: Epsilon of the norms.
      bias: Whether the projections to queries, keys and values have biases.
      qk_norm: Whether queries and keys are normalised per head.
    """

    def __init__(self, config: TextSizes, *, eps: float, bias: bool, qk_norm: bool, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.input_layernorm = RMSNorm(config.hidden_size, eps)
        self.self_attn = GroupedAttention(config, bias=bias, norm_eps=eps if qk_norm else None, key=keys[0], std=std)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=False, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> Float[Array, "B T D"]:
        x = x + self.self_attn(self.input_layernorm(x), rotary, attend)
        return x + self.mlp(self.post_attention_layernorm(x))
