"""Rates that a device reaches: matrix products and copies of memory. What other work needs at least follows from them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vitar_jax.bench.pairs import seconds


def matrix_product(size: int, dtype: str) -> Callable[[], jax.Array]:
    """Returns a function that multiplies two square matrices on one device. It needs 2 * size**3 FLOPs."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b).block_until_ready()


def copy_rate(size: int = 2**30) -> float:
    """Returns the bytes per second that a device reads and writes when it copies `size` bytes."""
    array, copy = jnp.zeros(size, jnp.uint8), jax.jit(lambda x: x + 1)

    def run() -> Any:
        return copy(array).block_until_ready()

    run()
    return 2 * size / min(seconds(run) for _ in range(10))
