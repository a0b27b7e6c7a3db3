"""The key-value cache: one slot per episode, filled from the left, and one leaf per layer."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitar_jax.models.kernels.backend import BackEnd, Cached


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "lengths"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the first `lengths[slot]` tokens of each slot. Later entries are never read.

    Attributes:
      keys, values: [slots, K, capacity, E] per layer; heads come before positions, the order in which attention reads them.
      lengths: int32 [slots].
    """

    keys: tuple[Float[Array, "B K M E"], ...]
    values: tuple[Float[Array, "B K M E"], ...]
    lengths: Int[Array, " B"]

    @classmethod
    def create(cls, layers: int, slots: int, capacity: int, kv_heads: int, head_dim: int, dtype: str) -> "KVCache":
        def leaf() -> jax.Array:
            return jnp.zeros((slots, kv_heads, capacity, head_dim), dtype)

        return cls(
            keys=tuple(leaf() for _ in range(layers)),
            values=tuple(leaf() for _ in range(layers)),
            lengths=jnp.zeros(slots, jnp.int32),
        )

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def places(self, counts: Int[Array, " B"], length: int) -> Int[Array, "B T"]:
        """Returns the cache positions of `length` new tokens.

        Positions after the first `counts[slot]` are out of range, so that writes drop their tokens.
        """
        offsets = jnp.arange(length)[None]
        return jnp.where(offsets < counts[:, None], self.lengths[:, None] + offsets, self.capacity)

    def write(self, layer: int, places: Int[Array, "B T"], k: Float[Array, "B T K E"], v: Float[Array, "B T K E"]) -> "KVCache":
        """Returns the cache with the keys and values of new tokens in one layer."""

        def put(leaves: tuple[jax.Array, ...], new: jax.Array) -> tuple[jax.Array, ...]:
            rows = jnp.arange(new.shape[0])[:, None]
            leaf = leaves[layer].at[rows, :, places].set(new.astype(leaves[layer].dtype), mode="drop")
            return (*leaves[:layer], leaf, *leaves[layer + 1 :])

        return dataclasses.replace(self, keys=put(self.keys, k), values=put(self.values, v))

    def attend(
        self,
        layer: int,
        q: Float[Array, "B T H E"],
        k: Float[Array, "B T K E"],
        v: Float[Array, "B T K E"],
        counts: Int[Array, " B"],
        back_end: BackEnd,
        reach: int,
    ) -> Float[Array, "B T H E"]:
        """Returns the attention of new tokens to the cache and, causally, to the first `counts` of themselves.

        The new tokens are already written, but `lengths` does not count them yet.

        Args:
          reach: Number of positions that are read. No slot that takes part has more tokens, new ones included.
        """
        keys, values = (
            jnp.swapaxes(leaves[layer][:, :, :reach], 1, 2).astype(q.dtype) for leaves in (self.keys, self.values)
        )
        attend = back_end.decode if q.shape[1] == 1 else back_end.cached
        return attend(q, k, v, Cached(keys, values, self.lengths, counts))

    def grow(self, counts: Int[Array, " B"]) -> "KVCache":
        return dataclasses.replace(self, lengths=self.lengths + counts)


def take_rows(tree: Any, slots: Int[Array, " R"], shards: int) -> Any:
    """Returns copies of some slots of arrays whose first axis is slots. Numbers past the last slot copy the last slot.

    Args:
      shards: Number of data shards of the slots. Each block of R / shards entries of `slots` is on one shard, so no data moves
        between shards.
    """

    def take(leaf: jax.Array) -> jax.Array:
        rows = jax.vmap(lambda part, index: part.at[index].get(mode="clip"))(_cut(leaf, shards), _within(leaf, slots, shards))
        return rows.reshape(-1, *leaf.shape[1:])

    return jax.tree.map(take, tree)


def put_rows(tree: Any, slots: Int[Array, "R G"], rows: Any, shards: int) -> Any:
    """Copies each row into its G slots; see `take_rows`. Ignores numbers past the last slot."""

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
        new = jnp.broadcast_to(new[:, None], (*slots.shape, *new.shape[1:])).reshape(slots.size, *new.shape[1:])
        index = _within(leaf, slots.reshape(-1), shards)
        put = jax.vmap(lambda part, index, rows: part.at[index].set(rows.astype(part.dtype), mode="drop"))
        return put(_cut(leaf, shards), index, _cut(new, shards)).reshape(leaf.shape)

    return jax.tree.map(put, tree, rows)


def _cut(leaf: jax.Array, shards: int) -> jax.Array:
    return leaf.reshape(shards, -1, *leaf.shape[1:])


def _within(leaf: jax.Array, slots: Int[Array, " slots"], shards: int) -> Int[Array, "shards slots"]:
    """Returns the indices of slots within their shards."""
    each = leaf.shape[0] // shards
    local = slots.reshape(shards, -1) - each * jnp.arange(shards)[:, None]
    return jnp.where(slots.reshape(shards, -1) < leaf.shape[0], local, each)
