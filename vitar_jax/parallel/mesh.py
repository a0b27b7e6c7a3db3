"""The device mesh and the sharding rules.

A parameter names its logical axes (`embed`, `mlp`, ...). `ShardingRules` maps each logical axis to a mesh axis.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.errors import ConfigError

Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the mesh axes that shard a batch's bins


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axis of each logical axis. None means replicated."""

    embed: str | None = "fsdp"
    mlp: str | None = "tensor"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    vocab: str | None = "tensor"
    sequence: str | None = None


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over `devices` (default: all devices). One size may be -1 and takes the remaining devices.

    Raises:
      ConfigError: If the product of the sizes is not the number of devices.
    """
    sizes = [data, fsdp, tensor]
    count = len(devices) if devices is not None else jax.device_count()
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // -int(np.prod(sizes))
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        raise ConfigError(f"mesh: got data {data} x fsdp {fsdp} x tensor {tensor}, expected a product of {count} devices")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


def regrouped(mesh: Mesh, tensor: int) -> Mesh:
    """Returns a mesh of the same devices in the same order, with data shards of `tensor` devices each.

    Raises:
      ConfigError: If `tensor` does not divide the number of devices per process.
    """
    local = min(collections.Counter(device.process_index for device in mesh.devices.flat).values())
    if tensor < 1 or local % tensor:
        raise ConfigError(f"rollout.tensor: {tensor} does not divide the {local} devices of each process")
    return Mesh(mesh.devices.reshape(-1, 1, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def bins(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of data shards, which is the length of a batch's leading axis."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose leading axis is the bins."""
    return NamedSharding(mesh, P(BATCH))


def local_bins(mesh: Mesh) -> int:
    """Returns the number of bins on this process's devices.

    Raises:
      ConfigError: If a bin spans devices of several processes.
    """
    owners: dict[int, set[int]] = {}
    for device, (span,) in batch_sharding(mesh).devices_indices_map((bins(mesh),)).items():
        owners.setdefault(span.start or 0, set()).add(device.process_index)
    if any(len(processes) > 1 for processes in owners.values()):
        raise ConfigError(f"mesh: tensor {mesh.shape['tensor']} spans processes; choose a size that fits in one process")
    return sum(processes == {jax.process_index()} for processes in owners.values())


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Sets the mesh that kernels are partitioned over while a program is traced. None means one device."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh is not None else contextlib.nullcontext()


def keep_in_bins(x: jax.Array) -> jax.Array:
    """Constrains the first axis of an activation to the data shards and replicates the other axes.

    The `fsdp` axis also shards the weights. Without this constraint, the compiler leaves the weights sharded and gathers the
    activations of all bins instead. Does nothing without a mesh (`on_mesh`), or if the data shards do not divide the axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % bins(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH))


def bring_to_bins(rows: jax.Array) -> jax.Array:
    """Applies `keep_in_bins` to rows [bins, ..., D] that were looked up in a table whose width is sharded over `fsdp`.

    The lookup keeps the table's sharding, and an all-to-all then moves each row to its bin. Without the intermediate
    constraint, the compiler would gather the rows of all bins on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and rows.shape[-1] % mesh.shape["fsdp"] == 0:
        rows = jax.lax.with_sharding_constraint(rows, P("data", *[None] * (rows.ndim - 2), "fsdp"))
    return keep_in_bins(rows)


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Assembles the global device batch from the bins that each process packed for its own devices."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, batch_sharding(mesh)), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def axes_sharding(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Returns the sharding of an array whose last axes have these logical names; see `shardings`."""
    axes = (None,) * (len(shape) - len(axes)) + tuple(axes)  # stacked layers add a leading axis
    names = []
    for size, axis in zip(shape, axes, strict=True):
        name = getattr(rules, axis) if axis else None
        names.append(name if name and size % mesh.shape[name] == 0 and name not in names else None)
    return NamedSharding(mesh, P(*names))


def shardings(tree: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """Returns the sharding of every leaf of a tree of `nnx.Param`s (a module, or the optimizer state of one).

    Replicates an axis whose size the mesh axis does not divide. Also replicates a leaf without logical axes, and a leaf with
    fewer axes than names (a factored moment).
    """

    def spec(leaf: Any) -> Any:
        if not jax.tree.leaves(leaf):  # a frozen parameter has no moments
            return leaf
        axes = leaf.get_metadata().get("logical_axes", ()) if isinstance(leaf, nnx.Variable) else ()
        sharding = axes_sharding(leaf.shape, axes if len(axes) <= len(leaf.shape) else (), mesh, rules)
        return jax.tree.map(lambda _: sharding, leaf)

    return jax.tree.map(spec, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
