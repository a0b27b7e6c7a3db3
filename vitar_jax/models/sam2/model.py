"""SAM 2's image path: an image becomes maps once, and each prompt vector becomes a mask.

A vector of a language model stands where SAM 2 has the embeddings of points, as in Sa2VA (Yuan et al., 2025, arXiv 2501.04001).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vitar_jax.models.sam2.config import Sam2Config
from vitar_jax.models.sam2.decoder import MaskDecoder, PositionalEmbedding, PromptEncoder
from vitar_jax.models.sam2.encoder import ImageEncoder

_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)  # ImageNet's


@partial(jax.tree_util.register_dataclass, data_fields=["fine", "middle", "embedding"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ImageMaps:
    """What the mask decoder reads of an image, for all of its masks.

    Attributes:
      fine, middle: Maps at 1/4 and 1/8 of the image's side.
      embedding: Map at 1/16.
    """

    fine: Float[Array, "*B rows columns D/8"]
    middle: Float[Array, "*B rows columns D/4"]
    embedding: Float[Array, "*B rows columns D"]


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "ious", "object_logits"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Masks:
    """Three candidates for the mask of each prompt.

    Attributes:
      logits: Mask logits at 1/4 of the image's side.
      ious: Predicted IoU of each candidate.
      object_logits: Logit of whether there is an object. Sa2VA ignores it.
    """

    logits: Float[Array, "N masks 3 height width"]
    ious: Float[Array, "N masks 3"]
    object_logits: Float[Array, "N masks"]

    def best(self) -> Float[Array, "N masks height width"]:
        """Returns the logits of the candidate with the highest predicted IoU. Only that candidate gets a gradient."""
        chosen = jnp.argmax(self.ious, axis=-1)[..., None, None, None]
        return jnp.take_along_axis(self.logits, chosen, axis=2)[:, :, 0]


class Sam2(nnx.Module):
    """SAM 2 for single images, with random weights in fp32.

    Args:
      remat: Policy for the backward pass of the trunk's blocks (`models/remat.py`).
    """

    def __init__(self, config: Sam2Config, *, key: jax.Array, remat: str = "none"):
        keys = jax.random.split(key, 5)
        width = config.decoder.hidden_size
        self.vision_encoder = ImageEncoder(config, key=keys[0], remat=remat)
        self.prompt_encoder = PromptEncoder(config, key=keys[1])
        self.mask_decoder = MaskDecoder(config.decoder, key=keys[2])
        self.shared_image_embedding = PositionalEmbedding(width, key=keys[3])
        self.no_memory_embedding = nnx.Param(width**-0.5 * jax.random.normal(keys[4], (1, 1, width)))
        self.config = config

    def encode(self, pixels: UInt8[Array, "B N side side 3"], dtype: str = "float32") -> ImageMaps:
        """Returns the maps of images. Encodes the N images one after another, so that memory does not grow with N.

        Args:
          pixels: RGB images, resized to the side `config.image_size`. B are the bins of a batch, or 1.
          dtype: Type of computation.

        Returns:
          Maps with the leading axes [B, N].
        """

        def encode_one(pixels: UInt8[Array, "B side side 3"]) -> ImageMaps:
            normal = ((pixels / np.float32(255) - _MEAN) / _STD).astype(dtype)
            fine, middle, embedding = self.mask_decoder.project(self.vision_encoder(normal))
            # A single image is a video without memories, which SAM 2 marks.
            return ImageMaps(fine, middle, embedding + self.no_memory_embedding[...].astype(dtype))

        maps = jax.lax.map(encode_one, jnp.moveaxis(pixels, 1, 0))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), maps)

    def decode(self, maps: ImageMaps, prompts: Float[Array, "N masks D"]) -> Masks:
        """Returns the masks of prompt vectors.

        Args:
          maps: Maps of N images.
          prompts: Vectors of the decoder's width, several for each image. They have no position.
        """
        dtype = prompts.dtype
        of_prompts = self.prompt_encoder
        # SAM 2 pads every prompt with an empty point, and Sa2VA's prompt is one such point, padded.
        padding = of_prompts.not_a_point_embed.weight[...].astype(dtype)
        prompt = jnp.concatenate([*[jnp.broadcast_to(padding, prompts.shape)[:, :, None]] * 2, prompts[:, :, None]], axis=2)
        embedding = maps.embedding.astype(dtype) + of_prompts.no_mask_embed.weight[...].astype(dtype)
        positions = self.shared_image_embedding(*embedding.shape[1:3])
        levels = (maps.fine.astype(dtype), maps.middle.astype(dtype), embedding)
        return Masks(*self.mask_decoder(levels, positions, prompt))
