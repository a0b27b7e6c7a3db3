"""Layers that SAM 2's image encoder and mask decoder share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.kernels.xla import attend
from vitar_jax.models.layers import Linear


class FeedForward(nnx.Module):
    """Projections with an activation between them.

    Args:
      widths: Width of the input, of each hidden vector and of the output.
    """

    def __init__(self, widths: tuple[int, ...], activation: Callable[[jax.Array], jax.Array], *, key: jax.Array):
        keys = jax.random.split(key, len(widths) - 1)
        axes = [("embed", "mlp"), *[("mlp", None)] * (len(widths) - 3), ("mlp", "embed")]
        first, *inner, last = (
            Linear(d_in, d_out, axes=names, bias=True, key=one)
            for d_in, d_out, names, one in zip(widths[:-1], widths[1:], axes, keys, strict=True)
        )
        self.proj_in, self.layers, self.proj_out = first, nnx.data(inner), last
        self.activation = activation

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        x = self.activation(self.proj_in(x))
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.proj_out(x)


def exact_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


def attend_to_all(
    q: Float[Array, "*B T D"], k: Float[Array, "*B S D"], v: Float[Array, "*B S D"], heads: int
) -> Float[Array, "*B T D"]:
    """Returns multi-head attention of every query to every key. Leading axes of keys and values may be 1."""
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))
    out = attend(q, k, v, jnp.ones((1, k.shape[-3]), bool))
    return out.reshape(*out.shape[:-2], -1)
