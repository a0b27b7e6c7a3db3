"""The device mesh and the sharding rules.

A parameter names its axes logically (`embed`, `mlp`, ...); `ShardingRules` says which mesh axis each falls on.
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


def regrouped(mesh: Mesh, tensor: int) -> Mesh:
    """The same devices in the same order, in data shards of `tensor` devices each.

    Raises:
      ConfigError: the devices of one process do not make whole shards.
    """
    local = min(collections.Counter(device.process_index for device in mesh.devices.flat).values())
    if tensor < 1 or local % tensor:
        raise ConfigError(f"rollout.tensor: {tensor} does not divide the {local} devices of a process")
    return Mesh(mesh.devices.reshape(-1, 1, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def bins(mesh: Mesh | AbstractMesh) -> int:
    """Data shards, the length of a batch's leading axis."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays whose leading axis is bins."""
    return NamedSharding(mesh, P(BATCH))


def local_bins(mesh: Mesh) -> int:
    """How many of the bins lie on this process's devices.

    Raises:
      ConfigError: a bin lies on devices of several processes.
    """
    owners: dict[int, set[int]] = {}
    for device, (span,) in batch_sharding(mesh).devices_indices_map((bins(mesh),)).items():
        owners.setdefault(span.start or 0, set()).add(device.process_index)
    if any(len(processes) > 1 for processes in owners.values()):
        raise ConfigError(f"mesh: tensor {mesh.shape['tensor']} spans processes; the tensor axis must stay within one")
    return sum(processes == {jax.process_index()} for processes in owners.values())


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """While a program is traced: the mesh that kernels spread over; None is one device."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh is not None else contextlib.nullcontext()


def keep_in_bins(x: jax.Array) -> jax.Array:
    """Fixes the first axis of an activation to the data shards and leaves the others whole.

    Weights are split over `fsdp` too. Left to itself, the compiler keeps them where they are and brings every bin's
    activations to them. Does nothing where no mesh is set (`on_mesh`), or where the shards do not divide the axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % bins(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(BATCH))


def bring_to_bins(rows: jax.Array) -> jax.Array:
    """The same for what bins look up in a table, [bins, ..., D], whose width is split over `fsdp`.

    The lookup leaves each row split as the table is; an all-to-all then brings it to its bin. Without the step between, the
    compiler would first copy the rows of all bins to every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and rows.shape[-1] % mesh.shape["fsdp"] == 0:
        rows = jax.lax.with_sharding_constraint(rows, P("data", *[None] * (rows.ndim - 2), "fsdp"))
    return keep_in_bins(rows)


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """One device batch from the bins that each process has packed for its own devices."""
    return jax.tree.map(partial(jax.make_array_from_process_local_data, batch_sharding(mesh)), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def axes_sharding(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """The sharding of one array whose last axes have these logical names; see `shardings`."""
    axes = (None,) * (len(shape) - len(axes)) + tuple(axes)  # stacked layers have a leading axis
    names = []
    for size, axis in zip(shape, axes, strict=True):
        name = getattr(rules, axis) if axis else None
        names.append(name if name and size % mesh.shape[name] == 0 and name not in names else None)
    return NamedSharding(mesh, P(*names))


def shardings(tree: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """The sharding of every leaf of a tree of `nnx.Param`s (a module, or an optimizer's state over one).

    An axis that its mesh axis does not divide stays whole, as does a leaf that names no axes or, being a factored moment, has
    fewer than it names.
    """

    def spec(leaf: Any) -> Any:
        if not jax.tree.leaves(leaf):  # a frozen parameter has no moment
            return leaf
        axes = leaf.get_metadata().get("logical_axes", ()) if isinstance(leaf, nnx.Variable) else ()
        sharding = axes_sharding(leaf.shape, axes if len(axes) <= len(leaf.shape) else (), mesh, rules)
        return jax.tree.map(lambda _: sharding, leaf)

    return jax.tree.map(spec, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
