"""The trunk of SAM 2's image encoder: Hiera (Ryali et al., 2023), four stages of windowed attention on ever smaller maps.

Maps are [B, rows, columns, D].
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.layers import LayerNorm, Linear, scan_layers, stack, unstack
from vitar_jax.models.sam2.config import TrunkConfig
from vitar_jax.models.sam2.layers import FeedForward, attend_to_all, exact_gelu
from vitar_jax.parallel.mesh import keep_in_bins

EPS = 1e-6
PATCH_KERNEL, PATCH_STRIDE, _PADDING = 7, 4, 3  # of the patch embedding, in pixels
_SHARPNESS = -0.75  # of torch's bicubic interpolation; jax.image.resize has -0.5


class PatchEmbed(nnx.Module):
    """A convolution whose filters overlap. The kernel is a matrix [channels * 7 * 7, D], as in Hugging Face's transpose."""

    def __init__(self, width: int, *, key: jax.Array):
        self.projection = Linear(3 * PATCH_KERNEL**2, width, axes=(None, "embed"), bias=True, key=key)

    def __call__(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B rows columns D"]:
        bias = self.projection.bias
        assert bias is not None
        kernel = self.projection.kernel[...].astype(pixels.dtype).reshape(3, PATCH_KERNEL, PATCH_KERNEL, -1)
        maps = jax.lax.conv_general_dilated(
            pixels, kernel, (PATCH_STRIDE, PATCH_STRIDE), [(_PADDING, _PADDING)] * 2, dimension_numbers=("NHWC", "IHWO", "NHWC")
        )
        return maps + bias[...].astype(pixels.dtype)


def bicubic(size: int, length: int) -> np.ndarray:
    """Returns the matrix [size, length] that resizes an axis from `length` to `size` as torch does.

    That is `torch.nn.functional.interpolate` with mode "bicubic": cubic convolution (Keys, 1981) with a = -0.75, centres at
    half pixels, border values repeated, no antialiasing.
    """
    place = (np.arange(size) + 0.5) * length / size - 0.5
    taps = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
    away = np.abs(place[:, None] - taps)
    a = _SHARPNESS
    near, far = ((a + 2) * away - (a + 3)) * away**2 + 1, ((away - 5) * away + 8) * a * away - 4 * a
    matrix = np.zeros((size, length))
    np.add.at(matrix, (np.arange(size)[:, None], np.clip(taps, 0, length - 1)), np.where(away <= 1, near, far))
    return matrix.astype(np.float32)


def halve(x: Float[Array, "*B rows columns D"]) -> Float[Array, "*B rows//2 columns//2 D"]:
    """Returns the maximum of each 2 x 2 square of a map."""
    *batch, rows, columns, width = x.shape
    return x.reshape(*batch, rows // 2, 2, columns // 2, 2, width).max(axis=(-4, -2))


def into_windows(x: Float[Array, "B rows columns D"], side: int) -> Float[Array, "B down across side side D"]:
    """Cuts a map into windows. Zeros fill the windows at the right and lower border, and take part in attention."""
    *_, rows, columns, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -rows % side), (0, -columns % side), (0, 0)))
    return x.reshape(len(x), x.shape[1] // side, side, x.shape[2] // side, side, width).swapaxes(2, 3)


def out_of_windows(x: Float[Array, "B down across side side D"], rows: int, columns: int) -> Float[Array, "B rows columns D"]:
    """Joins windows to a map, without what filled them."""
    count, down, across, side, _, width = x.shape
    return x.swapaxes(2, 3).reshape(count, down * side, across * side, width)[:, :rows, :columns]


class PooledAttention(nnx.Module):
    """Multi-head attention within each map. With `halving`, queries are pooled, so that the result has half the map's side."""

    def __init__(self, d_in: int, d_out: int, heads: int, *, halving: bool, key: jax.Array):
        keys = jax.random.split(key)
        self.qkv = Linear(d_in, 3 * d_out, axes=("embed", "heads"), bias=True, key=keys[0])
        self.proj = Linear(d_out, d_out, axes=("heads", "embed"), bias=True, key=keys[1])
        self.heads = heads
        self.halving = halving

    def __call__(self, x: Float[Array, "*B rows columns I"]) -> Float[Array, "*B pooled pooled O"]:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        q = halve(q) if self.halving else q
        queries, keys, values = (part.reshape(*part.shape[:-3], -1, part.shape[-1]) for part in (q, k, v))
        return self.proj(attend_to_all(queries, keys, values, self.heads)).reshape(q.shape)


class Block(nnx.Module):
    """Windowed attention and an MLP. A block with `d_in` other than `d_out` halves the map."""

    def __init__(self, d_in: int, d_out: int, heads: int, mlp_ratio: float, *, key: jax.Array):
        keys = jax.random.split(key, 3)
        hidden = int(d_out * mlp_ratio)
        self.layer_norm1 = LayerNorm(d_in, EPS)
        self.attn = PooledAttention(d_in, d_out, heads, halving=d_in != d_out, key=keys[0])
        self.layer_norm2 = LayerNorm(d_out, EPS)
        self.mlp = FeedForward((d_out, hidden, d_out), exact_gelu, key=keys[1])
        self.proj = Linear(d_in, d_out, axes=("embed", None), bias=True, key=keys[2]) if d_in != d_out else None

    def __call__(self, x: Float[Array, "B rows columns I"], window: int) -> Float[Array, "B pooled pooled O"]:
        """Runs the block with windows of this side. 0 is attention to the whole map."""
        normed = self.layer_norm1(x)
        shortcut = x if self.proj is None else halve(self.proj(normed))
        if window:
            attended = out_of_windows(self.attn(into_windows(normed, window)), *shortcut.shape[1:3])
        else:
            attended = self.attn(normed)
        x = shortcut + attended
        return x + self.mlp(self.layer_norm2(x))


class Trunk(nnx.Module):
    """The stages, as runs of blocks. `runs` has the stack of each run under the number of its first block."""

    def __init__(self, config: TrunkConfig, *, key: jax.Array, remat: str):
        keys = jax.random.split(key, 4)
        widths, heads = config.embed_dim_per_stage, config.num_attention_heads_per_stage
        width, side = widths[0], config.window_size_per_stage[0]
        self.patch_embed = PatchEmbed(width, key=keys[0])
        background = (1, width, *config.window_positional_embedding_background_size)
        self.pos_embed = nnx.Param(width**-0.5 * jax.random.normal(keys[1], background))
        self.pos_embed_window = nnx.Param(width**-0.5 * jax.random.normal(keys[2], (1, width, side, side)))
        self.runs = nnx.data({})
        for run, one in zip(config.runs, jax.random.split(keys[3], len(config.runs)), strict=True):
            d_in, d_out = widths[run.stage - run.pools], widths[run.stage]
            count = heads[run.stage]
            self.runs[run.first] = stack(
                lambda k, d_in=d_in, d_out=d_out, count=count: Block(d_in, d_out, count, config.mlp_ratio, key=k),
                len(run.windows),
                one,
            )
        self.config = config
        self.remat = remat

    def positions(self, rows: int, columns: int) -> Float[Array, "rows columns D"]:
        """Returns the position of each place: a resized table, plus a table that repeats in every window of the first stage."""
        background, window = self.pos_embed[...][0], self.pos_embed_window[...][0]
        vertical, horizontal = bicubic(rows, background.shape[1]), bicubic(columns, background.shape[2])
        resized = jnp.einsum("rh,cw,dhw->rcd", vertical, horizontal, background)
        repeated = jnp.tile(window, (1, rows // window.shape[1], columns // window.shape[2]))
        return resized + jnp.moveaxis(repeated, 0, -1)

    def __call__(self, pixels: Float[Array, "B height width 3"]) -> list[Float[Array, "B rows columns D"]]:
        """Returns the map of each stage, at 1/4, 1/8, 1/16 and 1/32 of the image's side."""
        x = self.patch_embed(pixels)
        x = keep_in_bins(x + self.positions(*x.shape[1:3]).astype(x.dtype))
        maps: dict[int, jax.Array] = {}
        for run in self.config.runs:
            blocks = self.runs[run.first]
            if run.pools:
                x = keep_in_bins(unstack(blocks)[0](x, run.windows[0]))
            else:
                x = scan_layers(lambda block, x, window: block(x, window), blocks, x, run.windows, remat=self.remat)
            maps[run.stage] = x
        return list(maps.values())
