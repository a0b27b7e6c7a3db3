"""Reshards loaded arrays from the row layout that files are read in to the layout of the model."""

from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def row_layout(shape: Sequence[int], axis: int, target: NamedSharding) -> tuple[tuple[int, ...], NamedSharding]:
    """Returns a layout that shards an array along `axis` alone, over all devices of `target`.

    Returns:
      The shape, with `axis` padded to a multiple of the number of devices, and the sharding.
    """
    padded = (*shape[:axis], shape[axis] + -shape[axis] % target.mesh.size, *shape[axis + 1 :])
    return padded, _rows(axis, target, [*_cuts(axis, target), *target.mesh.axis_names])


def reshard(padded: jax.Array, shape: Sequence[int], axis: int, target: NamedSharding) -> jax.Array:
    """Reshards an array from `row_layout` to `target` and removes the padding.

    This takes one all-gather over the mesh axes that `target` does not use, then one all-to-all over the axes that it uses.
    Without the intermediate layout, XLA gathers the whole array on every device.
    """

    def move(array: jax.Array) -> jax.Array:
        for layout in (_rows(axis, target, _cuts(axis, target)), target):
            array = jax.lax.with_sharding_constraint(array, layout)
        return array[tuple(map(slice, shape))]

    return jax.jit(move, out_shardings=target)(padded)


def _cuts(axis: int, target: NamedSharding) -> list[str]:
    """Returns the mesh axes of `target`, starting with the axes of `axis`, so that data in the right shard stays there."""
    spec = target.spec
    return [*jax.tree.leaves(spec[axis : axis + 1]), *jax.tree.leaves([*spec[:axis], *spec[axis + 1 :]])]


def _rows(axis: int, target: NamedSharding, names: Sequence[str]) -> NamedSharding:
    """Returns a sharding of one axis over the named mesh axes, without duplicates."""
    return NamedSharding(target.mesh, P(*[None] * axis, tuple(dict.fromkeys(names))))
