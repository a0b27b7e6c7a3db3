"""Layers that model families share, and the scan over a stack of layers."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitar_jax.models.remat import inputs_kept, recompute
from vitar_jax.parallel.mesh import keep_in_bins

Axes = tuple[str | None, ...]


class LowRank(nnx.Module):
    """A LoRA adapter of a projection (Hu et al., 2021, arXiv 2106.09685): adds `scale * (x @ a) @ b`.

    `a` [*layers, in, rank] starts uniform within 1 / sqrt(in), as in peft (Kaiming's, with a slope of sqrt 5). `b`
    [*layers, rank, out] starts at 0, so that a new adapter changes nothing.
    """

    def __init__(self, shape: Sequence[int], *, rank: int, scale: float, axes: Axes, key: jax.Array):
        """Creates an adapter of a projection whose kernel has this `shape` and these logical `axes`."""
        *layers, d_in, d_out = shape
        bound = d_in**-0.5
        self.a = nnx.Param(
            jax.random.uniform(key, (*layers, d_in, rank), minval=-bound, maxval=bound), logical_axes=(axes[0], None)
        )
        self.b = nnx.Param(jnp.zeros((*layers, rank, d_out)), logical_axes=(None, axes[1]))
        self.scale = scale

    def __call__(self, x: Float[Array, "B I"]) -> Float[Array, "B O"]:
        return self.scale * (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype)

    def product(self) -> Float[Array, "*L I O"]:
        """Returns the product that the adapter adds to the kernel."""
        return self.scale * self.a[...] @ self.b[...]


class Linear(nnx.Module):
    """`x @ kernel + bias`, computed in the type of `x`. `kernel` is [in, out]; Hugging Face stores its transpose.

    Random kernels have standard deviation `std`, or 1 / sqrt(in) if `std` is None. `models/lora.py` sets `lora`.
    """

    def __init__(self, d_in: int, d_out: int, *, axes: Axes, bias: bool, key: jax.Array, std: float | None = None):
        scale = d_in**-0.5 if std is None else std
        self.kernel = nnx.Param(scale * jax.random.normal(key, (d_in, d_out)), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(d_out), logical_axes=axes[1:]) if bias else None
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        # Flat, because on CPUs XLA computes the kernel's gradient three times slower if it sums over several axes.
        flat = x.reshape(-1, x.shape[-1])
        y = flat @ self.kernel[...].astype(x.dtype)
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        y = y if self.lora is None else y + self.lora(flat)
        return y.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Root-mean-square norm, computed in fp32 (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones(width), logical_axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        @inputs_kept
        def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
            x32 = x.astype(jnp.float32)
            scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
            return weight.astype(x.dtype) * (x32 * scale).astype(x.dtype)

        return norm(x, self.weight[...])


class LayerNorm(nnx.Module):
    """Layer norm with a bias, computed in fp32 (Ba et al., 2016)."""

    def __init__(self, width: int, eps: float):
        self.weight = nnx.Param(jnp.ones(width), logical_axes=(None,))
        self.bias = nnx.Param(jnp.zeros(width), logical_axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        @inputs_kept
        def norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
            centred = x.astype(jnp.float32)
            centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
            scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
            return (centred * scale * weight + bias).astype(x.dtype)

        return norm(x, self.weight[...], self.bias[...])


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int, *, bias: bool, key: jax.Array, std: float | None = None):
        keys = jax.random.split(key, 3)
        self.gate_proj = Linear(width, hidden, axes=("embed", "mlp"), bias=bias, key=keys[0], std=std)
        self.up_proj = Linear(width, hidden, axes=("embed", "mlp"), bias=bias, key=keys[1], std=std)
        self.down_proj = Linear(hidden, width, axes=("mlp", "embed"), bias=bias, key=keys[2], std=std)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        flat = x.reshape(-1, x.shape[-1])  # once, or the backward pass would keep every intermediate in both shapes
        down = inputs_kept(lambda gate, up: self.down_proj(jax.nn.silu(gate) * up))
        return down(self.gate_proj(flat), self.up_proj(flat)).reshape(x.shape)


def stack(make_layer: Callable[[jax.Array], Any], count: int, key: jax.Array) -> Any:
    """Returns `count` layers as one module, each of whose leaves has a leading layer axis."""
    return jax.vmap(make_layer)(jax.random.split(key, count))


def unstack(layers: Any) -> tuple[Any, ...]:
    """Returns the layers of a stacked module."""
    count = jax.tree.leaves(layers)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(count))


def period(kinds: Sequence[Hashable]) -> int:
    """Returns the length of the shortest sequence whose repetition is `kinds`."""
    kinds, count = tuple(kinds), len(kinds)
    return next(p for p in range(1, count + 1) if count % p == 0 and kinds[:p] * (count // p) == kinds)


def scan_layers(
    apply: Callable[[Any, jax.Array, Any], jax.Array],
    layers: Any,
    x: jax.Array,
    kinds: Sequence[Hashable],
    *,
    remat: str,
) -> jax.Array:
    """Runs a stack of layers as a scan over the repetitions of their kinds.

    A tower of 32 layers in which every eighth is of another kind compiles as a scan of 4 steps over a body of 8 layers:

        kinds = (w w w w w w w f) x 4   ->  period 8, leaves [32, ...] seen as [4, 8, ...]

    Args:
      apply: (layer, x, kind) -> x.
      layers: A module from `stack`.
      kinds: Kind of each layer, known at trace time.
      remat: Policy for each layer's backward pass (`models/remat.py`).
    """
    kinds = tuple(kinds)
    count, length = len(kinds), period(kinds)
    recomputed = recompute(apply, remat)

    def step(layer: Any, x: jax.Array, kind: Hashable) -> jax.Array:
        return keep_in_bins(recomputed(layer, keep_in_bins(x), kind))

    if length == 1:  # not in groups, because the backward pass keeps copies of layers that are sliced from a group
        return jax.lax.scan(lambda x, layer: (step(layer, x, kinds[0]), None), x, layers)[0]
    groups = jax.tree.map(lambda leaf: leaf.reshape(count // length, length, *leaf.shape[1:]), layers)

    def body(x: jax.Array, group: Any) -> tuple[jax.Array, None]:
        for layer, kind in zip(unstack(group), kinds[:length], strict=True):
            x = step(layer, x, kind)
        return x, None

    return jax.lax.scan(body, x, groups)[0]
