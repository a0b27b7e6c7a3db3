"""SAM 2's image encoder: the trunk, and the feature pyramid (Lin et al., 2017) of its last stages."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.layers import Linear
from vitar_jax.models.sam2.config import Sam2Config
from vitar_jax.models.sam2.trunk import Trunk
from vitar_jax.parallel.mesh import keep_in_bins

Levels = tuple[jax.Array, jax.Array, jax.Array]  # maps at 1/4, 1/8 and 1/16 of the image's side


class Neck(nnx.Module):
    """Projects the stages' maps to one width. Only the third map also receives the one above it, twice as large.

    `convs` begins with the projection of the last stage, as in the published files.
    """

    def __init__(self, widths: tuple[int, ...], width: int, *, key: jax.Array):
        keys = jax.random.split(key, len(widths))
        self.convs = nnx.data(
            [
                Linear(d_in, width, axes=("embed", None), bias=True, key=one)
                for d_in, one in zip(reversed(widths), keys, strict=True)
            ]
        )

    def __call__(self, maps: list[Float[Array, "B rows columns _"]]) -> Levels:
        last, third, second, first = (keep_in_bins(conv(x)) for conv, x in zip(self.convs, reversed(maps), strict=True))
        return first, second, third + jnp.repeat(jnp.repeat(last, 2, axis=1), 2, axis=2)


class ImageEncoder(nnx.Module):
    """Trunk and neck. Takes normalised pixels."""

    def __init__(self, config: Sam2Config, *, key: jax.Array, remat: str):
        keys = jax.random.split(key)
        self.backbone = Trunk(config.trunk, key=keys[0], remat=remat)
        self.neck = Neck(config.trunk.embed_dim_per_stage, config.decoder.hidden_size, key=keys[1])

    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Levels:
        return self.neck(self.backbone(pixels))
