"""SAM 2's prompt embeddings, and the mask decoder: tokens and image attend to each other, then tokens select masks.

Vectors are [N, masks, ...]: several masks of each image.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.layers import LayerNorm, Linear, stack
from vitar_jax.models.sam2.config import DecoderConfig, Sam2Config
from vitar_jax.models.sam2.encoder import Levels
from vitar_jax.models.sam2.layers import FeedForward, attend_to_all, exact_gelu

MASK_TOKENS = 4  # one for a single mask, which is not used here, and three for the parts and wholes that a prompt may mean
_EPS = 1e-5
_EPS_OF_MAPS = 1e-6


class Embedding(nnx.Module):
    """A table of learned vectors."""

    def __init__(self, *shape: int, key: jax.Array):
        self.weight = nnx.Param(shape[-1] ** -0.5 * jax.random.normal(key, shape))


class Filters(nnx.Module):
    """The weights of a convolution, [out, in, height, width]."""

    def __init__(self, *shape: int, key: jax.Array):
        self.weight = nnx.Param((shape[1] * shape[2] * shape[3]) ** -0.5 * jax.random.normal(key, shape))
        self.bias = nnx.Param(jnp.zeros(shape[0]))


class MaskEmbed(nnx.Module):
    """The embedding of a mask as a prompt. Nothing here prompts with masks; the weights are kept for the files."""

    def __init__(self, channels: int, width: int, *, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.conv1 = Filters(channels // 4, 1, 2, 2, key=keys[0])
        self.conv2 = Filters(channels, channels // 4, 2, 2, key=keys[1])
        self.conv3 = Filters(width, channels, 1, 1, key=keys[2])
        self.layer_norm1 = LayerNorm(channels // 4, _EPS_OF_MAPS)
        self.layer_norm2 = LayerNorm(channels, _EPS_OF_MAPS)


class PromptEncoder(nnx.Module):
    """The learned vectors around a prompt. The embeddings of points and boxes, and of masks, are kept for the files."""

    def __init__(self, config: Sam2Config, *, key: jax.Array):
        keys = jax.random.split(key, 4)
        width = config.decoder.hidden_size
        self.no_mask_embed = Embedding(1, width, key=keys[0])
        self.not_a_point_embed = Embedding(1, width, key=keys[1])
        self.point_embed = Embedding(4, 1, width, key=keys[2])
        self.mask_embed = MaskEmbed(config.mask_input_channels, width, key=keys[3])


class PositionalEmbedding(nnx.Module):
    """Random Fourier features of a place in the image (Tancik et al., 2020)."""

    def __init__(self, width: int, *, key: jax.Array):
        self.positional_embedding = nnx.Param(jax.random.normal(key, (2, width // 2)))

    def __call__(self, rows: int, columns: int) -> Float[Array, "rows columns D"]:
        """Returns the features of the centre of each place of a map."""
        y, x = ((jnp.arange(length) + 0.5) / length for length in (rows, columns))
        places = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
        angles = 2 * jnp.pi * ((2 * places - 1) @ self.positional_embedding[...].astype(jnp.float32))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Attention(nnx.Module):
    """Multi-head attention of inner width `inner`, with biases."""

    def __init__(self, width: int, inner: int, heads: int, *, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.q_proj, self.k_proj, self.v_proj = (
            Linear(width, inner, axes=("embed", "heads"), bias=True, key=one) for one in keys[:3]
        )
        self.o_proj = Linear(inner, width, axes=("heads", "embed"), bias=True, key=keys[3])
        self.heads = heads

    def __call__(
        self, q: Float[Array, " N #masks T D"], k: Float[Array, " N #masks S D"], v: Float[Array, " N #masks S D"]
    ) -> Float[Array, "N masks T D"]:
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        q = jnp.broadcast_to(q, (*jnp.broadcast_shapes(q.shape[:2], k.shape[:2]), *q.shape[2:]))
        return self.o_proj(attend_to_all(q, k, v, self.heads))


class TwoWayBlock(nnx.Module):
    """Attention among tokens, from tokens to the image, an MLP of the tokens, and attention from the image to the tokens.

    Args:
      first: Whether this is the first block, in which tokens attend to each other without positions and without a residual.
    """

    def __init__(self, config: DecoderConfig, *, first: bool, key: jax.Array):
        keys = jax.random.split(key, 4)
        width, heads = config.hidden_size, config.num_attention_heads
        inner = width // config.attention_downsample_rate
        self.self_attn = Attention(width, width, heads, key=keys[0])
        self.cross_attn_token_to_image = Attention(width, inner, heads, key=keys[1])
        self.mlp = FeedForward((width, config.mlp_dim, width), jax.nn.relu, key=keys[2])
        self.cross_attn_image_to_token = Attention(width, inner, heads, key=keys[3])
        self.layer_norm1, self.layer_norm2, self.layer_norm3, self.layer_norm4 = (LayerNorm(width, _EPS) for _ in range(4))
        self.first = first

    def __call__(
        self,
        tokens: Float[Array, "N masks T D"],
        image: Float[Array, " N #masks P D"],
        token_positions: Float[Array, "N masks T D"],
        image_positions: Float[Array, "P D"],
    ) -> tuple[Float[Array, "N masks T D"], Float[Array, "N masks P D"]]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.layer_norm1(tokens)
        placed_image = image + image_positions
        tokens = self.layer_norm2(
            tokens + self.cross_attn_token_to_image(tokens + token_positions, placed_image, image)
        )
        tokens = self.layer_norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(placed_image, tokens + token_positions, tokens)
        return tokens, self.layer_norm4(image)


class TwoWayTransformer(nnx.Module):
    """Two blocks, and a last attention from tokens to the image."""

    def __init__(self, config: DecoderConfig, *, key: jax.Array):
        keys = jax.random.split(key, 3)
        width = config.hidden_size
        self.layers = nnx.data([TwoWayBlock(config, first=not i, key=keys[i]) for i in range(2)])
        self.final_attn_token_to_image = Attention(
            width, width // config.attention_downsample_rate, config.num_attention_heads, key=keys[2]
        )
        self.layer_norm_final_attn = LayerNorm(width, _EPS)

    def __call__(
        self, tokens: Float[Array, "N masks T D"], image: Float[Array, " N #masks P D"], positions: Float[Array, "P D"]
    ) -> tuple[Float[Array, "N masks T D"], Float[Array, "N masks P D"]]:
        """Returns both after the transformer. The tokens as they were are also their positions."""
        placed = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, placed, positions)
        attended = self.final_attn_token_to_image(tokens + placed, image + positions, image)
        return self.layer_norm_final_attn(tokens + attended), image


class Upscale(nnx.Module):
    """A transposed convolution of 2 x 2 with stride 2. The weights are [in, out, 2, 2], as in the files."""

    def __init__(self, d_in: int, d_out: int, *, key: jax.Array):
        self.weight = nnx.Param(d_in**-0.5 * jax.random.normal(key, (d_in, d_out, 2, 2)))
        self.bias = nnx.Param(jnp.zeros(d_out))

    def __call__(self, x: Float[Array, "*B rows columns I"]) -> Float[Array, "*B 2*rows 2*columns O"]:
        *batch, rows, columns, _ = x.shape
        kernel, bias = (part[...].astype(x.dtype) for part in (self.weight, self.bias))
        squares = x @ jnp.moveaxis(kernel, 1, -1).reshape(len(kernel), -1)
        squares = squares.reshape(*batch, rows, columns, 2, 2, -1).swapaxes(-4, -3)
        return squares.reshape(*batch, 2 * rows, 2 * columns, -1) + bias


class MaskDecoder(nnx.Module):
    def __init__(self, config: DecoderConfig, *, key: jax.Array):
        keys = jax.random.split(key, 11)
        width = config.hidden_size
        self.conv_s0 = Linear(width, width // 8, axes=("embed", None), bias=True, key=keys[0])
        self.conv_s1 = Linear(width, width // 4, axes=("embed", None), bias=True, key=keys[1])
        self.obj_score_token = Embedding(1, width, key=keys[2])
        self.iou_token = Embedding(1, width, key=keys[3])
        self.mask_tokens = Embedding(MASK_TOKENS, width, key=keys[4])
        self.transformer = TwoWayTransformer(config, key=keys[5])
        self.upscale_conv1 = Upscale(width, width // 4, key=keys[6])
        self.upscale_layer_norm = LayerNorm(width // 4, _EPS_OF_MAPS)
        self.upscale_conv2 = Upscale(width // 4, width // 8, key=keys[7])
        self.output_hypernetworks_mlps = stack(
            lambda k: FeedForward((width, width, width, width // 8), jax.nn.relu, key=k), MASK_TOKENS, keys[8]
        )
        hidden = config.iou_head_hidden_dim
        self.iou_prediction_head = FeedForward((width, hidden, hidden, MASK_TOKENS), jax.nn.relu, key=keys[9])
        self.pred_obj_score_head = FeedForward((width, width, width, 1), jax.nn.relu, key=keys[10])

    def project(self, levels: Levels) -> Levels:
        """Returns the maps that the decoder reads: the two large ones narrower, the last as it is."""
        return self.conv_s0(levels[0]), self.conv_s1(levels[1]), levels[2]

    def upscale(
        self,
        places: Float[Array, "N masks rows columns D"],
        fine: Float[Array, " N #masks height width D/8"],
        middle: Float[Array, " N #masks 2*rows 2*columns D/4"],
    ) -> Float[Array, "N masks height width D/8"]:
        """Returns the map of which masks are products, four times as large."""
        places = exact_gelu(self.upscale_layer_norm(self.upscale_conv1(places) + middle))
        return exact_gelu(self.upscale_conv2(places) + fine)

    def __call__(
        self,
        maps: Levels,
        positions: Float[Array, "rows columns D"],
        prompts: Float[Array, "N masks T D"],
    ) -> tuple[Float[Array, "N masks 3 height width"], Float[Array, "N masks 3"], Float[Array, "N masks"]]:
        """Returns mask logits at 1/4 of the image's side, predicted IoUs, and logits of whether there is an object.

        Args:
          maps: The maps of `project`, the last one prepared with what the prompt encoder adds to it.
        """
        fine, middle, image = (level[:, None] for level in maps)
        count, masks, _, width = prompts.shape
        own = [embedding.weight[...] for embedding in (self.obj_score_token, self.iou_token, self.mask_tokens)]
        learned = jnp.concatenate(own).astype(prompts.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(learned, (count, masks, *learned.shape)), prompts], axis=2)
        rows, columns = image.shape[2:4]
        tokens, places = self.transformer(
            tokens, image.reshape(count, 1, -1, width), positions.reshape(-1, width).astype(prompts.dtype)
        )
        places = places.reshape(count, masks, rows, columns, width)
        places = self.upscale(places, fine, middle)
        of_masks = jnp.moveaxis(tokens[:, :, 2 : 2 + MASK_TOKENS], 2, 0)
        selectors = jax.vmap(lambda mlp, x: mlp(x))(self.output_hypernetworks_mlps, of_masks)[1:]
        logits = jnp.einsum("mnkd,nkhwd->nkmhw", selectors, places)
        ious = jax.nn.sigmoid(self.iou_prediction_head(tokens[:, :, 1]))[..., 1:]
        return logits, ious, self.pred_obj_score_head(tokens[:, :, 0])[..., 0]
