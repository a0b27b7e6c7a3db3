"""Arrays from the layout they are read in to the one they are used in."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.parallel.reshard import reshard, row_layout
from vitar_jax.plan.hlo import collectives

# Mesh, shape, axis of the rows, target. Rows are 8 parts evenly, then with padding.
CASES = [
    ((1, 8, 1), (3, 64, 96), 2, P(None, "fsdp", "tensor")),
    ((1, 4, 2), (3, 64, 96), 2, P(None, "fsdp", "tensor")),
    ((1, 4, 2), (3, 64, 96), 2, P(None, "tensor", "fsdp")),
    ((2, 2, 2), (3, 64, 96), 2, P(None, "fsdp", "tensor")),
    ((2, 4, 1), (96, 64), 0, P("fsdp")),
    ((8, 1, 1), (96, 64), 0, P()),
    ((2, 2, 2), (96, 64), 0, P(None, ("fsdp", "tensor"))),
    ((1, 8, 1), (3, 64, 90), 2, P(None, "fsdp")),
    ((2, 2, 2), (3, 64, 90), 2, P(None, "fsdp", "tensor")),
    ((1, 4, 2), (5, 64), 0, P(None, "fsdp")),
]


@pytest.mark.slow
@pytest.mark.parametrize("sizes, shape, axis, spec", CASES)
def test_devices_exchange_rows_for_what_they_want(sizes: tuple[int, ...], shape: tuple[int, ...], axis: int, spec: P) -> None:
    target = NamedSharding(make_mesh(*sizes), spec)
    padded_shape, by_rows = row_layout(shape, axis, target)
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    padding = [(0, after - before) for before, after in zip(shape, padded_shape, strict=True)]
    padded = jax.device_put(np.pad(array, padding, constant_values=np.nan), by_rows)
    rows = {(index[axis].start, index[axis].stop) for index in by_rows.devices_indices_map(padded_shape).values()}
    assert len(rows) == 8 and all(part.data.nbytes * 8 == padded.nbytes for part in padded.addressable_shards)

    moved = reshard(padded, shape, axis, target)
    assert moved.sharding == target and np.array_equal(moved, array)

    compiled = jax.jit(lambda x: reshard(x, shape, axis, target)).lower(padded).compile()
    part = math.prod(target.shard_shape(padded_shape)) * array.itemsize
    assert all(found.bytes <= part for found in collectives(compiled.as_text()))
