"""Sa2VA (Yuan et al., 2025, arXiv 2501.04001) on Qwen3-VL, as in VRT (arXiv 2512.05091).

The decoder's state at a `[SEG]` token becomes a vector that prompts SAM 2's mask decoder:

    hidden states [D] at [SEG]  ->  bridge  ->  prompt [256]  ->  SAM 2, with the image's maps  ->  mask
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vitar_jax.models.layers import Linear
from vitar_jax.models.qwen3_vl.model import Qwen3VL
from vitar_jax.models.sa2va.config import Sa2VAConfig
from vitar_jax.models.sam2.model import ImageMaps, Masks, Sam2
from vitar_jax.processing.mask_targets import MaskBatch


class Bridge(nnx.Module):
    """Maps states of the language model to prompts of the mask decoder."""

    def __init__(self, width: int, prompt: int, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.fc1 = Linear(width, width, axes=("embed", "mlp"), bias=True, key=keys[0], std=std)
        self.fc2 = Linear(width, prompt, axes=("mlp", None), bias=True, key=keys[1], std=std)

    def __call__(self, states: Float[Array, "*B D"]) -> Float[Array, "*B prompt"]:
        return self.fc2(jax.nn.relu(self.fc1(states)))


@partial(jax.tree_util.register_dataclass, data_fields=["bridge", "sam2"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class BridgedSam2:
    """The parts of the model that make masks, as a `MaskMaker`."""

    bridge: Bridge
    sam2: Sam2

    @property
    def side(self) -> int:
        return self.sam2.config.image_size

    def image_maps(self, pixels: UInt8[Array, "B N side side 3"], dtype: str) -> ImageMaps:
        return self.sam2.encode(pixels, dtype)

    def masks(self, maps: ImageMaps, states: Float[Array, "N masks D"]) -> Masks:
        return self.sam2.decode(maps, self.bridge(states))


class Sa2VA(Qwen3VL):
    """The model with random weights in fp32. Text and states are Qwen3-VL's; masks are decoded from states afterwards."""

    config: Sa2VAConfig

    def __init__(self, config: Sa2VAConfig, *, key: jax.Array, std: float | None = None):
        keys = jax.random.split(key, 3)
        super().__init__(config, key=keys[0], std=std)
        self.bridge = Bridge(config.text.hidden_size, config.sam2.decoder.hidden_size, key=keys[1], std=std)
        self.sam2 = Sam2(config.sam2, key=keys[2], remat=config.remat)

    @property
    def mask_maker(self) -> BridgedSam2:
        return BridgedSam2(self.bridge, self.sam2)

    def masks_of(self, hidden: Float[Array, "bins R S D"], batch: MaskBatch) -> Float[Array, "bins E masks height width"]:
        """Returns the mask logits of a batch's entries from the hidden states of its rows, at 1/4 of the image's side.

        The logits at places without a mask are undefined.
        """
        maker = self.mask_maker
        rows, positions = batch.row[..., None], jnp.maximum(batch.positions, 0)
        states = jax.vmap(lambda hidden, rows, positions: hidden[rows, positions])(hidden, rows, positions)
        maps = jax.vmap(lambda maps, images: jax.tree.map(lambda level: level[images], maps))(
            maker.image_maps(batch.pixels, self.config.dtype), batch.image
        )
        flat = jax.tree.map(lambda level: level.reshape(-1, *level.shape[2:]), maps)
        masks = maker.masks(flat, states.reshape(-1, *states.shape[2:])).best()
        return masks.reshape(*batch.positions.shape, *masks.shape[2:])
