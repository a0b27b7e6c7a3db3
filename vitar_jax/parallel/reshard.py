"""From the layout that an array is read in to the one that it is used in: devices exchange what they hold."""

from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def row_layout(shape: Sequence[int], axis: int, target: NamedSharding) -> tuple[tuple[int, ...], NamedSharding]:
    """A layout that gives every device of `target` rows of its own: it cuts an array along one axis alone.

    Returns:
      The shape, with that axis padded to what the devices divide, and the sharding.
    """
    padded = (*shape[:axis], shape[axis] + -shape[axis] % target.mesh.size, *shape[axis + 1 :])
    return padded, _rows(axis, target, [*_cuts(axis, target), *target.mesh.axis_names])


def reshard(padded: jax.Array, shape: Sequence[int], axis: int, target: NamedSharding) -> jax.Array:
    """Brings an array of `row_layout` to its own shape and `target`.

    One all-gather over the mesh axes that `target` does not use, then one all-to-all over those that it does. Left to find
    the way by itself, XLA gathers the whole array on every device.
    """

    def move(array: jax.Array) -> jax.Array:
        for layout in (_rows(axis, target, _cuts(axis, target)), target):
            array = jax.lax.with_sharding_constraint(array, layout)
        return array[tuple(map(slice, shape))]

    return jax.jit(move, out_shardings=target)(padded)


def _cuts(axis: int, target: NamedSharding) -> list[str]:
    """Mesh axes that cut the array, first those that cut `axis`: what lies in their parts stays in them."""
    spec = target.spec
    return [*jax.tree.leaves(spec[axis : axis + 1]), *jax.tree.leaves([*spec[:axis], *spec[axis + 1 :]])]


def _rows(axis: int, target: NamedSharding, names: Sequence[str]) -> NamedSharding:
    """A cut of one axis by mesh axes, each but once."""
    return NamedSharding(target.mesh, P(*[None] * axis, tuple(dict.fromkeys(names))))
