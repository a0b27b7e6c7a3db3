"""Counts the bytes that a recipe's programs must read, from the shapes of their arguments."""

import math

import jax

from vitar_jax.experiment.programs import Call, Programs


def argument_bytes(call: Call) -> int:
    """Returns the size of the arguments on one device, in bytes."""
    leaves = jax.tree.leaves(call.arguments)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def argument_passes(programs: Programs, name: str) -> int:
    """Returns the number of times a program reads its arguments. Decode reads weights and cache once per token of a chunk."""
    return programs.recipe.rollout.chunk if name == "decode" else 1
