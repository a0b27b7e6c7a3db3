"""The decoder: embeddings, a stack of layers with three-axis rotary positions, and the last norm."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitar_jax.models.attention import find_back_end
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.kernels.backend import Attend
from vitar_jax.models.layers import RMSNorm, stack
from vitar_jax.models.remat import recompute
from vitar_jax.models.rope import Rotary
from vitar_jax.parallel.mesh import keep_in_bins


class DecoderLayer(Protocol):
    """One layer of a family's decoder."""

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> Float[Array, "B T D"]:
        """Runs the layer. `attend` attends to the row in training and to a cache in rollout."""
        ...


def place_features(
    embeddings: Float[Array, "*B D"], features: Float[Array, "F width"], vision_index: Int[Array, "*B"]
) -> tuple[Float[Array, "*B D"], tuple[Float[Array, "*B D"], ...]]:
    """Replaces the embedding of token i by feature `vision_index[i]`, unless that is -1.

    Args:
      features: The first D columns are embeddings. Each further D columns are a level, which the decoder adds after a layer.

    Returns:
      The embeddings, and one injection per level, 0 at text tokens.
    """
    is_vision = (vision_index >= 0)[..., None]
    taken = features[jnp.maximum(vision_index, 0)].astype(embeddings.dtype)
    first, *levels = jnp.split(taken, taken.shape[-1] // embeddings.shape[-1], axis=-1)
    return jnp.where(is_vision, first, embeddings), tuple(jnp.where(is_vision, level, 0) for level in levels)


# Attention of a layer: (q, k, v, index of the layer) -> (output, value that the caller keeps for the layer).
# The index is an int if layers are unrolled, and None in a scan.
AttendLayer = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def run_layers(
    layers: Any,
    x: Float[Array, "B T D"],
    rotary: Rotary,
    attend: AttendLayer,
    *,
    injections: Sequence[Float[Array, "B T D"]] = (),
    remat: str = "none",
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs all decoder layers. Training, rollout and attention maps share this loop.

    Args:
      layers: A stacked module, which is scanned, or a tuple of layers, which are unrolled.
      injections: Added to the hidden states after the first layers, one per layer (DeepStack, Meng et al., 2024).
      remat: Policy for each layer's backward pass (`models/remat.py`).

    Returns:
      The hidden states, and the values that `attend` keeps: stacked over layers in a scan, otherwise a list.
    """

    def apply(numbered: tuple[Any, Any], x: jax.Array, unrolled: int | None) -> tuple[jax.Array, Any]:
        layer, number = numbered
        kept: list[Any] = []

        def attend_and_keep(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            out, of_layer = attend(q, k, v, unrolled)
            kept.append(of_layer)
            return out

        x = layer(x, rotary, attend_and_keep)
        return inject(x, injections, number), kept[0]

    if isinstance(layers, tuple):
        of_layers = []
        for number, layer in enumerate(layers):
            x, kept = apply((layer, number), x, number)
            of_layers.append(kept)
        return x, of_layers

    recomputed = recompute(apply, remat)

    def body(x: jax.Array, numbered: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        x, kept = recomputed(numbered, keep_in_bins(x), None)
        return keep_in_bins(x), kept

    # Never slices the stack. With injections, also scans over the layer's index, which selects the injection.
    numbers = jnp.arange(jax.tree.leaves(layers)[0].shape[0]) if injections else None
    return jax.lax.scan(body, x, (layers, numbers))


def inject(x: Float[Array, "B T D"], injections: Sequence[Float[Array, "B T D"]], number: Any) -> Float[Array, "B T D"]:
    """Adds the injection of layer `number`, an int or an array, if it has one."""
    count = len(injections)
    if isinstance(number, int) or not count:
        return x + injections[number] if count and number < count else x
    return jnp.where(number < count, x + jnp.stack(injections)[jnp.minimum(number, count - 1)], x)


class Decoder(nnx.Module):
    """Embeddings, decoder layers and the last norm. Parameters are created in fp32.

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
        injections: Sequence[Float[Array, "B S D"]] = (),
    ) -> Float[Array, "B S D"]:
        """Returns hidden states after the last norm. Tokens attend causally within their own segment."""
        attend = find_back_end(self.attention).causal(segment_ids)
        x, _ = run_layers(
            self.layers,
            embeddings,
            self.config.rotary(position_ids),
            lambda q, k, v, _: (attend(q, k, v), None),
            injections=injections,
            remat=self.remat,
        )
        return self.norm(x)
