"""The decoder: Qwen2.5's transformer with three-axis rotary positions."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from vitar_jax.models.attention import Attend, causal_attention
from vitar_jax.models.config import TextConfig
from vitar_jax.models.layers import Linear, RMSNorm, SwiGLU, scan_layers, stack
from vitar_jax.models.rope import Rotary, mrope, rotate


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
        """`attend` looks into the row in training, into a cache in rollout."""
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


class TextDecoder(nnx.Module):
    def __init__(self, config: TextConfig, *, key: jax.Array, std: float | None, remat: str, attention: str):
        keys = jax.random.split(key)
        std_table = config.hidden_size**-0.5 if std is None else std
        table = std_table * jax.random.normal(keys[0], (config.vocab_size, config.hidden_size))
        self.embed_tokens = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.layers = stack(lambda k: DecoderLayer(config, key=k, std=std), config.num_hidden_layers, keys[1])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config
        self.remat = remat
        self.attention = attention

    def rotary(self, position_ids: Int[Array, "*B 3 S"]) -> Rotary:
        config = self.config
        return mrope(position_ids, config.head_dim, config.rope_theta, config.mrope_section)

    def __call__(
        self,
        embeddings: Float[Array, "B S D"],
        position_ids: Int[Array, "B 3 S"],
        segment_ids: Int[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        """Hidden states after the last norm; tokens attend causally within their own segment."""
        rotary = self.rotary(position_ids)
        attend = causal_attention(segment_ids, self.attention)

        def apply(layer: DecoderLayer, x: jax.Array, _: None) -> jax.Array:
            return layer(x, rotary, attend)

        kinds = [None] * self.config.num_hidden_layers
        return self.norm(scan_layers(apply, self.layers, embeddings, kinds, remat=self.remat))
