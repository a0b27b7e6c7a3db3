"""The decoder layer of Qwen2.5."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.kernels.backend import Attend
from vitar_jax.models.layers import Linear, RMSNorm, SwiGLU
from vitar_jax.models.qwen2_5_vl.config import TextConfig
from vitar_jax.models.rope import Rotary, rotate


class TextAttention(nnx.Module):
    def __init__(self, config: TextConfig, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key, 4)
        d, e = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads * e, config.num_key_value_heads * e
        self.q_proj = Linear(d, heads, axes=("embed", "heads"), bias=True, key=keys[0], std=std)
        self.k_proj = Linear(d, kv_heads, axes=("embed", "kv_heads"), bias=True, key=keys[1], std=std)
        self.v_proj = Linear(d, kv_heads, axes=("embed", "kv_heads"), bias=True, key=keys[2], std=std)
        self.o_proj = Linear(heads, d, axes=("heads", "embed"), bias=False, key=keys[3], std=std)
        self.head_dim = e

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> Float[Array, "B T D"]:
        """Runs the attention of a layer. `attend` attends to the row in training and to a cache in rollout."""
        q, k, v = (proj(x).reshape(*x.shape[:-1], -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = attend(rotate(q, rotary), rotate(k, rotary), v)
        return self.o_proj(out.reshape(*x.shape[:-1], -1))


class DecoderLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = TextAttention(config, key=keys[0], std=std)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=False, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> Float[Array, "B T D"]:
        x = x + self.self_attn(self.input_layernorm(x), rotary, attend)
        return x + self.mlp(self.post_attention_layernorm(x))
