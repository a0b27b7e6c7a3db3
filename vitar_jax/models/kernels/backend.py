"""The record that every attention back end registers in `models/attention.py`."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.remat import attention_value

# (q [*B, T, H, E], k [*B, S, K, E], v [*B, S, K, E]) -> [*B, T, H, E]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "lengths", "counts"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Cached:
    """Keys and values that each row's new tokens see.

    Attributes:
      keys, values: Old tokens, then the new ones; anything after them is never seen.
      lengths: Number of old tokens.
      counts: Number of new tokens. Further ones are padding, which is not in `keys`.
    """

    keys: Float[Array, "B M K E"]
    values: Float[Array, "B M K E"]
    lengths: Int[Array, " B"]
    counts: Int[Array, " B"]

    def mask(self, length: int) -> Bool[Array, "B T M"]:
        """Returns what each of `length` new tokens sees: everything up to its own place."""
        own = self.lengths[:, None] + jnp.arange(length)[None]
        return jnp.arange(self.keys.shape[1])[None, None] <= own[..., None]


# (q, k, v of the new tokens, what they see) -> [B, T, H, E]
AttendCached = Callable[[jax.Array, jax.Array, jax.Array, Cached], jax.Array]


@dataclasses.dataclass(frozen=True)
class BackEnd:
    """One way to compute attention.

    Attributes:
      causal: Makes attention for rows whose tokens see themselves and what precedes them in their own segment, from segment
        ids [B, S]; segment 0 is padding.
      full: Makes attention for rows whose places all see every valid place, from `valid` [B, S]. Results at other places
        mean nothing.
      cached: Attention of several new tokens per row to a cache and, causally, to each other.
      decode: The same for one new token per row.
      platform: The platform that it runs on. If empty, any.
      dtypes: Types that it computes in. If empty, any.
      segments: Whether a row may hold several segments.
      mark: Text that a compiled program contains if and only if it calls the kernel. If empty, there is no such text.
    """

    name: str
    causal: Callable[[jax.Array], Attend]
    full: Callable[[jax.Array], Attend]
    cached: AttendCached
    decode: AttendCached
    platform: str = ""
    dtypes: tuple[str, ...] = ()
    segments: bool = True
    mark: str = ""


def kept(attend: Attend) -> Attend:
    """Marks what remat policy `attention` keeps: what attention reads and returns."""
    return lambda q, k, v: attention_value(attend(*(attention_value(x) for x in (q, k, v))))
