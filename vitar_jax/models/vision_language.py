"""A vision-language model: vision tower, decoder and head, over a device batch with one bin for each data shard."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vitar_jax.models.config import ModelConfig
from vitar_jax.models.decoder import Decoder, place_features
from vitar_jax.models.layers import Linear
from vitar_jax.models.sam2.model import ImageMaps, Masks
from vitar_jax.parallel.mesh import bring_to_bins, keep_in_bins


class VisionTower(Protocol):
    """A family's vision tower.

    Attributes:
      patch_embed: Projects the pixels of a patch.
    """

    patch_embed: Linear

    def __call__(
        self, pixels: Float[Array, "N P C"], patch_positions: Int[Array, "N W X 2"], dtype: jnp.dtype
    ) -> Float[Array, "N F D"]:
        """Returns features of images, one image per row."""
        ...


class MaskMaker(Protocol):
    """The part of a model that makes masks of images, as a pytree of weights."""

    @property
    def side(self) -> int:
        """Side of the square that every image is resized to, in pixels."""
        ...

    def image_maps(self, pixels: UInt8[Array, "B N side side 3"], dtype: str) -> ImageMaps:
        """Returns the maps from which masks of images are decoded, [B, N, ...]. Encodes N images one after another."""
        ...

    def masks(self, maps: ImageMaps, states: Float[Array, "N masks D"]) -> Masks:
        """Returns masks of N images from the last hidden states at their `[SEG]` tokens, after the last norm."""
        ...


class VisionLanguageModel(nnx.Module):
    """The model interface of training, rollout and evaluation. Each family has a subclass, which makes the towers."""

    def __init__(self, config: ModelConfig, visual: VisionTower, decoder: Decoder, *, key: jax.Array, std: float | None = None):
        """Creates the head with random weights from `key` and `std`, unless it is tied to the embeddings."""
        self.visual = visual
        self.model = decoder
        text = config.text
        self.lm_head = (
            None
            if text.tie_word_embeddings
            else Linear(text.hidden_size, text.vocab_size, axes=("embed", "vocab"), bias=False, key=key, std=std)
        )
        self.config = config

    @property
    def mask_maker(self) -> MaskMaker | None:
        """The parts that make masks, without a copy; None in a family that makes none."""
        return None

    def embed(self, token_ids: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return self.model.embed_tokens[...][token_ids].astype(self.config.dtype)

    def encode(self, pixels: Float[Array, "N P C"], patch_positions: Int[Array, "N W X 2"]) -> Float[Array, "F D"]:
        """Returns the features of N images as one flat list: feature j of image n is at n * P/4 + j."""
        features = self.visual(pixels, patch_positions, jnp.dtype(self.config.dtype))
        return features.reshape(-1, features.shape[-1])

    def head(self) -> Float[Array, "D V"]:
        """Returns the matrix from hidden states to logits."""
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
        """Returns the hidden states of a device batch. Tokens of a bin take features of that bin's images only."""
        bins, rows, length = token_ids.shape
        features = self.visual(
            pixels.reshape(-1, *pixels.shape[2:]),
            patch_positions.reshape(-1, *patch_positions.shape[2:]),
            jnp.dtype(self.config.dtype),
        )
        features = features.reshape(bins, -1, features.shape[-1])
        embeddings, injections = jax.vmap(place_features)(
            bring_to_bins(self.embed(token_ids)), keep_in_bins(features), vision_index
        )
        hidden = self.model(
            embeddings.reshape(bins * rows, length, -1),
            jnp.moveaxis(position_ids, 1, 2).reshape(bins * rows, 3, length),
            segment_ids.reshape(bins * rows, length),
            [injection.reshape(bins * rows, length, -1) for injection in injections],
        )
        return hidden.reshape(bins, rows, length, -1)
