"""Matrices in int8 with one fp32 scale per channel, for weights that are read often and never trained.

A matrix is about `values * scale`. Products take the int8 values, which bf16 represents exactly, and multiply their result by
the scale. The compilers of accelerators convert the values inside the product, so that memory holds and sends int8 alone.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from jaxtyping import Int8 as Int8Values

from vitar_jax.models.layers import Linear

_MOST = 127  # without -128, so that the values are symmetric


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Int8Matrix:
    """A matrix, or a stack of matrices, in int8.

    Attributes:
      scale: fp32, of the same number of axes. Its size is 1 along the axis that shares a scale.
    """

    values: Int8Values[Array, "*L I O"]
    scale: Float[Array, "*L _ _"]

    @classmethod
    def of(cls, matrix: Float[Array, "*L I O"], *, axis: int = -2) -> "Int8Matrix":
        """Rounds a matrix to the nearest int8, where the largest magnitude along `axis` becomes 127.

        The default axis gives each output channel of a projection its own scale.
        """
        matrix = matrix.astype(jnp.float32)
        most = jnp.max(jnp.abs(matrix), axis=axis, keepdims=True)
        scale = jnp.maximum(most / _MOST, jnp.finfo(jnp.float32).tiny)  # a channel of zeros has a scale, too
        return cls(jnp.round(matrix / scale).astype(jnp.int8), scale)

    @property
    def T(self) -> "Int8Matrix":
        return Int8Matrix(self.values.T, self.scale.T)

    def rows(self, index: Int[Array, "*B"], dtype: Any) -> Float[Array, "*B O"]:
        """Returns rows of a matrix with one scale per row."""
        return (self.values[index] * self.scale[index]).astype(dtype)

    def product(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Returns `x` times a matrix with one scale per column, in fp32."""
        return jnp.dot(x, self.values.astype(x.dtype), preferred_element_type=jnp.float32) * self.scale[0]


class Int8Linear(nnx.Module):
    """A `Linear` without an adapter, whose kernel is int8 with one scale per output channel.

    Args:
      linear: The projection, or a stack of projections.
      dtype: Type of the bias.
    """

    def __init__(self, linear: Linear, dtype: str):
        assert linear.lora is None
        matrix, axes = Int8Matrix.of(linear.kernel[...]), linear.kernel.get_metadata()["logical_axes"]
        self.kernel = nnx.Param(matrix.values, logical_axes=axes)
        self.scale = nnx.Param(matrix.scale, logical_axes=axes)
        self.bias = None if linear.bias is None else jax.tree.map(lambda leaf: leaf.astype(dtype), linear.bias)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = Int8Matrix(self.kernel[...], self.scale[...]).product(x).astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def to_int8(layers: Any, dtype: str) -> Any:
    """Returns layers with projections in int8. Other parameters are cast to `dtype`."""

    def convert(leaf: Any) -> Any:
        return Int8Linear(leaf, dtype) if isinstance(leaf, Linear) else leaf.astype(dtype)

    return jax.tree.map(convert, layers, is_leaf=lambda leaf: isinstance(leaf, Linear))
