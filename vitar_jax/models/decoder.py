"""The decoder: embeddings, a stack of layers with three-axis rotary positions, and the last norm."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitar_jax.models.attention import Attend, causal_attention
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.layers import RMSNorm, scan_layers, stack
from vitar_jax.models.rope import Rotary


class DecoderLayer(Protocol):
    """One layer of a family's decoder."""

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> Float[Array, "B T D"]:
        """`attend` looks into the row in training, into a cache in rollout."""
        ...


def merge_features(
    embeddings: Float[Array, "*B D"], features: Float[Array, "F D"], vision_index: Int[Array, "*B"]
) -> Float[Array, "*B D"]:
    """Puts feature `vision_index[i]` in the place of token i; -1 leaves the token's own embedding."""
    taken = features[jnp.maximum(vision_index, 0)].astype(embeddings.dtype)
    return jnp.where((vision_index >= 0)[..., None], taken, embeddings)


class Decoder(nnx.Module):
    """Parameters are created in fp32.

    Args:
      make_layer: Makes one layer of the family from a random key.
      norm_eps: Epsilon of the last norm.
      std: Standard deviation of the random embeddings. If None, 1 / sqrt(width).
    """

    def __init__(
        self, config: ModelConfig, make_layer: Callable[[jax.Array], Any], *, norm_eps: float, key: jax.Array, std: float | None
    ):
        keys = jax.random.split(key)
        text = config.text
        std_table = text.hidden_size**-0.5 if std is None else std
        table = std_table * jax.random.normal(keys[0], (text.vocab_size, text.hidden_size))
        self.embed_tokens = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.layers = stack(make_layer, text.num_hidden_layers, keys[1])
        self.norm = RMSNorm(text.hidden_size, norm_eps)
        self.config = text
        self.remat = config.remat
        self.attention = config.attention

    def __call__(
        self,
        embeddings: Float[Array, "B S D"],
        position_ids: Int[Array, "B 3 S"],
        segment_ids: Int[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        """Hidden states after the last norm; tokens attend causally within their own segment."""
        rotary = self.config.rotary(position_ids)
        attend = causal_attention(segment_ids, self.attention)

        def apply(layer: DecoderLayer, x: jax.Array, _: None) -> jax.Array:
            return layer(x, rotary, attend)

        kinds = [None] * self.config.num_hidden_layers
        return self.norm(scan_layers(apply, self.layers, embeddings, kinds, remat=self.remat))
