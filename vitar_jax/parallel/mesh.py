"""The device mesh and the sharding rules.

A parameter names its axes logically (`embed`, `mlp`, ...); `ShardingRules` says which mesh axis each falls on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # a batch's bins fall on these


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axis -> mesh axis, or None for replicated."""

    embed: str | None = "fsdp"
    mlp: str | None = "tensor"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    vocab: str | None = "tensor"
    sequence: str | None = None


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of those given; one size may be -1 and takes what the others leave.

    Raises:
      ConfigError: the sizes do not make the number of devices.
    """
    sizes = [data, fsdp, tensor]
    count = len(devices) if devices is not None else jax.device_count()
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // -int(np.prod(sizes))
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        raise ConfigError(f"mesh: data {data} x fsdp {fsdp} x tensor {tensor} does not make {count} devices")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


def bins(mesh: Mesh) -> int:
    """Data shards, the length of a batch's leading axis."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays whose leading axis is bins."""
    return NamedSharding(mesh, P(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def shardings(tree: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """The sharding of every leaf of a tree of `nnx.Param`s (a module, or an optimizer's state over one).

    An axis that its mesh axis does not divide stays whole, as does a leaf that names no axes.
    """

    def spec(leaf: Any) -> Any:
        axes = leaf.get_metadata().get("logical_axes", ()) if isinstance(leaf, nnx.Variable) else ()
        shape = leaf.shape
        axes = (None,) * (len(shape) - len(axes)) + tuple(axes)  # stacked layers have a leading axis
        names = []
        for size, axis in zip(shape, axes, strict=True):
            name = getattr(rules, axis) if axis else None
            names.append(name if name and size % mesh.shape[name] == 0 and name not in names else None)
        sharding = NamedSharding(mesh, P(*names))
        return jax.tree.map(lambda _: sharding, leaf)

    return jax.tree.map(spec, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
