"""The vision tower of Qwen3-VL: learned and rotary positions, full attention in every layer, and mergers at several depths.

One image is one row of slots. Images do not attend to each other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.attention import find_back_end
from vitar_jax.models.blocks import FusedAttention
from vitar_jax.models.kernels.backend import Attend
from vitar_jax.models.layers import LayerNorm, Linear, stack
from vitar_jax.models.qwen3_vl.config import VisionConfig
from vitar_jax.models.remat import inputs_kept, recompute
from vitar_jax.models.rope import Rotary, vision_rope
from vitar_jax.parallel.mesh import keep_in_bins


class PositionTable(nnx.Module):
    """A square table of position embeddings, stretched over each image by bilinear interpolation.

    The corners of the table are the centres of the image's corner patches.
    """

    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None):
        shape = config.num_position_embeddings, config.hidden_size
        scale = config.hidden_size**-0.5 if std is None else std
        self.weight = nnx.Param(scale * jax.random.normal(key, shape), logical_axes=(None, None))
        self.side = config.table_side

    def __call__(self, patch_positions: Int[Array, "N P 2"]) -> Float[Array, "N P D"]:
        """Returns the embedding of each patch, from its row and column. Rows of padding (-1) are meaningless."""
        sides = jnp.max(patch_positions, axis=1, keepdims=True) + 1  # [N, 1, 2]: rows and columns of the image
        place = jnp.clip(patch_positions * (self.side - 1) / jnp.maximum(sides - 1, 1), 0, self.side - 1)
        low = place.astype(jnp.int32)
        high = jnp.minimum(low + 1, self.side - 1)
        (row, column), (next_row, next_column) = (jnp.unstack(taps, axis=-1) for taps in (low, high))
        down, right = jnp.unstack((place - low)[..., None], axis=-2)
        table = self.weight[...]
        def between(row: Int[Array, "N P"]) -> Float[Array, "N P D"]:
            left = table[row * self.side + column]
            return left + right * (table[row * self.side + next_column] - left)

        above = between(row)
        return above + down * (between(next_row) - above)


class VisionMLP(nnx.Module):
    """Two projections with the tanh approximation of GELU between them."""

    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        d, hidden = config.hidden_size, config.intermediate_size
        self.linear_fc1 = Linear(d, hidden, axes=("embed", "mlp"), bias=True, key=keys[0], std=std)
        self.linear_fc2 = Linear(hidden, d, axes=("mlp", "embed"), bias=True, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        down = inputs_kept(lambda x: self.linear_fc2(jax.nn.gelu(x, approximate=True)))
        return down(self.linear_fc1(x))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = FusedAttention(config.hidden_size, config.num_heads, key=keys[0], std=std)
        self.mlp = VisionMLP(config, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "N P D"], rotary: Rotary, attend: Attend) -> Float[Array, "N P D"]:
        x = x + self.attn(self.norm1(x), rotary, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """The merger of 2 x 2 neighbouring patches into one feature of the decoder's width, with the exact GELU.

    Args:
      norm_merged: Whether the norm comes after the patches are joined, as in the mergers of inner layers.
    """

    def __init__(self, config: VisionConfig, *, norm_merged: bool, key: jax.Array, std: float | None):
        keys = jax.random.split(key)
        self.merged = config.hidden_size * config.spatial_merge_size**2
        self.normed = self.merged if norm_merged else config.hidden_size
        self.norm = LayerNorm(self.normed, config.layer_norm_eps)
        self.linear_fc1 = Linear(self.merged, self.merged, axes=("embed", "mlp"), bias=True, key=keys[0], std=std)
        self.linear_fc2 = Linear(self.merged, config.out_hidden_size, axes=("mlp", "embed"), bias=True, key=keys[1], std=std)

    def __call__(self, x: Float[Array, "N P D"]) -> Float[Array, "N F O"]:
        x = self.norm(x.reshape(x.shape[0], -1, self.normed)).reshape(x.shape[0], -1, self.merged)
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=False))


class VisionTower(nnx.Module):
    def __init__(self, config: VisionConfig, *, key: jax.Array, std: float | None, remat: str, attention: str):
        keys = jax.random.split(key, 5)
        self.patch_embed = Linear(
            config.patch_width, config.hidden_size, axes=(None, "embed"), bias=True, key=keys[0], std=std
        )
        self.pos_embed = PositionTable(config, key=keys[1], std=std)
        self.blocks = stack(lambda k: VisionBlock(config, key=k, std=std), config.depth, keys[2])
        self.merger = PatchMerger(config, norm_merged=False, key=keys[3], std=std)
        self.deepstack_merger_list = stack(
            lambda k: PatchMerger(config, norm_merged=True, key=k, std=std), len(config.deepstack_visual_indexes), keys[4]
        )
        self.config = config
        self.remat = remat
        self.attention = attention

    def __call__(
        self,
        pixels: Float[Array, "N P C"],
        patch_positions: Int[Array, "N W X 2"],
        dtype: jnp.dtype,
    ) -> Float[Array, "N F width"]:
        """Returns features of images, one image per row.

        Args:
          pixels: Normalised patches, P = W * X slots per row.
          patch_positions: Row and column of each patch; -1 at padding.
          dtype: Type of computation.

        Returns:
          P / 4 features per row. Each is the embedding of a token, followed by what each of the first decoder layers adds
          (DeepStack). Feature j is made of slots 4j to 4j + 3; features of padding are meaningless.
        """
        config = self.config
        patch_positions = patch_positions.reshape(*pixels.shape[:2], 2)
        valid = patch_positions[..., 0] >= 0
        x = self.patch_embed(pixels.astype(dtype)) + self.pos_embed(patch_positions).astype(dtype)
        x, inner = self._run_blocks(x, vision_rope(patch_positions, config.head_dim, config.rope_theta), valid)
        levels = jax.vmap(lambda merger, x: merger(x))(self.deepstack_merger_list, inner)
        return jnp.concatenate([self.merger(x), *levels], axis=-1)

    def _run_blocks(
        self, x: Float[Array, "N P D"], rotary: Rotary, valid: Bool[Array, "N P"]
    ) -> tuple[Float[Array, "N P D"], Float[Array, "levels N P D"]]:
        """Returns the outputs of the last block and of the blocks that DeepStack takes."""
        attend = find_back_end(self.attention).full(valid)
        run = recompute(lambda block, x, _: block(x, rotary, attend), self.remat)
        taken = self.config.deepstack_visual_indexes
        places = np.full(self.config.depth, len(taken))  # of each block's output; that of most is overwritten
        places[list(taken)] = range(len(taken))

        # Carried outside of what is recomputed, so that the backward pass keeps no copy per block.
        def body(carry: tuple[jax.Array, jax.Array], placed: tuple[VisionBlock, jax.Array]) -> Any:
            (x, inner), (block, place) = carry, placed
            x = keep_in_bins(run(block, keep_in_bins(x), None))
            return (x, jax.lax.dynamic_update_index_in_dim(inner, x, place, axis=0)), None

        inner = jnp.zeros((len(taken) + 1, *x.shape), x.dtype)
        (x, inner), _ = jax.lax.scan(body, (x, inner), (self.blocks, jnp.asarray(places)))
        return x, inner[:-1]
