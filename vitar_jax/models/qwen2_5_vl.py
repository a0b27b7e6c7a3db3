"""Qwen2.5-VL: vision tower, decoder and head, over a device batch with one bin for each data shard."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitar_jax.models.config import ModelConfig
from vitar_jax.models.layers import Linear
from vitar_jax.models.text import TextDecoder
from vitar_jax.models.vision import VisionTower
from vitar_jax.parallel.mesh import bring_to_bins, keep_in_bins


def merge_features(
    embeddings: Float[Array, "*B D"], features: Float[Array, "F D"], vision_index: Int[Array, "*B"]
) -> Float[Array, "*B D"]:
    """Puts feature `vision_index[i]` in the place of token i; -1 leaves the token's own embedding."""
    taken = features[jnp.maximum(vision_index, 0)].astype(embeddings.dtype)
    return jnp.where((vision_index >= 0)[..., None], taken, embeddings)


class Qwen2_5_VL(nnx.Module):
    """The trunk (Bai et al., 2025, arXiv 2502.13923). Parameters are created in fp32.

    Args:
      std: standard deviation of the random weights; None takes 1 / sqrt(width), which small models want.
    """

    def __init__(self, config: ModelConfig, *, key: jax.Array, std: float | None = None):
        keys = jax.random.split(key, 3)
        how: Any = dict(std=std, remat=config.remat, attention=config.attention)
        self.visual = VisionTower(config.vision, key=keys[0], **how)
        self.model = TextDecoder(config.text, key=keys[1], **how)
        text = config.text
        self.lm_head = (
            None
            if text.tie_word_embeddings
            else Linear(text.hidden_size, text.vocab_size, axes=("embed", "vocab"), bias=False, key=keys[2], std=std)
        )
        self.config = config

    def embed(self, token_ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return self.model.embed_tokens[...][token_ids].astype(self.config.dtype)

    def encode(self, pixels: Float[Array, "N P C"], patch_positions: Int[Array, "N W X 2"]) -> Float[Array, "NF D"]:
        """Features of N images as one flat list: image n, slot j at n * P/4 + j."""
        features = self.visual(pixels, patch_positions, jnp.dtype(self.config.dtype))
        return features.reshape(-1, features.shape[-1])

    def head(self) -> Float[Array, "D V"]:
        """The matrix from hidden states to logits."""
        return self.model.embed_tokens[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def __call__(
        self,
        *,
        token_ids: Int[Array, "bins R S"],
        position_ids: Int[Array, "bins 3 R S"],
        segment_ids: Int[Array, "bins R S"],
        vision_index: Int[Array, "bins R S"],
        pixels: Float[Array, "bins N P C"],
        patch_positions: Int[Array, "bins N W X 2"],
    ) -> Float[Array, "bins R S D"]:
        """Hidden states of a device batch. A bin's tokens take features of that bin's images only."""
        bins, rows, length = token_ids.shape
        features = self.visual(
            pixels.reshape(-1, *pixels.shape[2:]),
            patch_positions.reshape(-1, *patch_positions.shape[2:]),
            jnp.dtype(self.config.dtype),
        )
        features = features.reshape(bins, -1, features.shape[-1])
        embeddings = jax.vmap(merge_features)(bring_to_bins(self.embed(token_ids)), keep_in_bins(features), vision_index)
        hidden = self.model(
            embeddings.reshape(bins * rows, length, -1),
            jnp.moveaxis(position_ids, 1, 2).reshape(bins * rows, 3, length),
            segment_ids.reshape(bins * rows, length),
        )
        return hidden.reshape(bins, rows, length, -1)


def abstract_model(config: ModelConfig) -> Any:
    """The model's shapes and types, without a number in them."""
    return jax.eval_shape(lambda: Qwen2_5_VL(config, key=jax.random.key(0)))
