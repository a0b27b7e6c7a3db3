"""The vision tower: window attention, full attention in some layers, and the 2 x 2 merger.

One image is one row of `windows x window_patches` slots, which the host lays out (`processing/positions.py`). Windows are a
batch dimension, so window attention needs neither a kernel nor segment ids, and full attention is dense over one row. Images
do not attend to each other.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitar_jax.models.attention import find_back_end
from vitar_jax.models.blocks import FusedAttention
from vitar_jax.models.kernels.backend import Attend
from vitar_jax.models.kernels.xla import attend
from vitar_jax.models.layers import Linear, RMSNorm, SwiGLU, scan_layers, stack
from vitar_jax.models.qwen2_5_vl.config import VisionConfig
from vitar_jax.models.rope import Rotary, vision_rope


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = FusedAttention(config.hidden_size, config.num_heads, key=keys[0], std=std)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=True, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "*B P D"], rotary: Rotary, attend: Attend) -> Float[Array, "*B P D"]:
        x = x + self.attn(self.norm1(x), rotary, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """The merger of 2 x 2 neighbouring patches into one feature of the decoder's width."""

    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.merged = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fc1 = Linear(self.merged, self.merged, axes=("embed", "mlp"), bias=True, key=keys[0], std=std)
        self.fc2 = Linear(self.merged, config.out_hidden_size, axes=("mlp", "embed"), bias=True, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N F O"]:
        x = self.ln_q(x).reshape(x.shape[0], -1, self.merged)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class VisionTower(nnx.Module):
    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None, remat: str, attention: str):
        keys = jax.random.split(key, 3)
        self.patch_embed = Linear(
            config.patch_width, config.hidden_size, axes=(None, "embed"), bias=False, key=keys[0], std=std
        )
        self.blocks = stack(lambda k: VisionBlock(config, key=k, std=std), config.depth, keys[1])
        self.merger = PatchMerger(config, key=keys[2], std=std)
        self.config = config
        self.remat = remat
        self.attention = attention

    def __call__(
        self,
        pixels: Float[Array, "N P C"],
        patch_positions: Int[Array, "N W X 2"],
        dtype: jnp.dtype,
    ) -> Float[Array, "N F D"]:
        """Returns features of images, one image per row.

        Args:
          pixels: Normalised patches in window order, P = W * X slots per row.
          patch_positions: Row and column of each patch for the rotary embedding; -1 at padding. The shape divides the slots
            into W windows of X patches.
          dtype: Type of computation.

        Returns:
          P / 4 features per row. Feature j is made of slots 4j to 4j + 3; features of padding are meaningless.
        """
        config = self.config
        n, windows, window_patches = patch_positions.shape[:3]
        valid = patch_positions[..., 0] >= 0
        rotary = vision_rope(patch_positions, config.head_dim, config.rope_theta)
        layouts = {  # kind of attention -> (shape of a row, rotary, attention)
            "window": (
                (n, windows, window_patches, -1),
                rotary,
                lambda q, k, v: attend(q, k, v, valid[..., None, :]),
            ),
            "full": (
                (n, windows * window_patches, -1),
                tuple(part.reshape(n, windows * window_patches, -1) for part in rotary),
                find_back_end(self.attention).full(valid.reshape(n, -1)),
            ),
        }

        def apply(block: VisionBlock, x: jax.Array, kind: str) -> jax.Array:
            shape, rotary, attend = layouts[kind]
            return block(x.reshape(shape), rotary, attend).reshape(x.shape)

        kinds = ["full" if i in config.fullatt_block_indexes else "window" for i in range(config.depth)]
        x = self.patch_embed(pixels.astype(dtype))
        x = scan_layers(apply, self.blocks, x, kinds, remat=self.remat)
        return self.merger(x)
