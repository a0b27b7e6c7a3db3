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
    """Keys and values that each row's new tokens attend to.

    Attributes:
      keys, values: Old tokens, followed by the new ones. Entries after them are never read.
      lengths: Number of old tokens.
      counts: Number of new tokens. Queries after them are padding, whose keys are not stored.
    """

    keys: Float[Array, "B M K E"]
    values: Float[Array, "B M K E"]
    lengths: Int[Array, " B"]
    counts: Int[Array, " B"]

    def mask(self, length: int) -> Bool[Array, "B T M"]:
        """Returns the mask of `length` new tokens: each sees all positions up to its own."""
        own = self.lengths[:, None] + jnp.arange(length)[None]
        return jnp.arange(self.keys.shape[1])[None, None] <= own[..., None]


# (q, k, v of the new tokens, keys and values that they attend to) -> [B, T, H, E]
AttendCached = Callable[[jax.Array, jax.Array, jax.Array, Cached], jax.Array]


@dataclasses.dataclass(frozen=True)
class BackEnd:
    """One way to compute attention.

    Attributes:
      causal: Makes causal attention within segments from segment ids [B, S], in which 0 is padding.
      full: Makes full attention to all valid positions from `valid` [B, S]. Results at invalid positions are meaningless.
      cached: Attention of several new tokens per row to a cache and, causally, to each other.
      decode: The same for one new token per row.
      platform: Supported platform. If empty, any.
      dtypes: Supported types. If empty, any.
      segments: Whether a row may contain several segments.
      mark: Text that a compiled program contains if and only if it calls the kernel. If empty, no text marks the kernel.
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
    """Marks the inputs and the output of attention, which remat policy `attention` keeps."""
    return lambda q, k, v: attention_value(attend(*(attention_value(x) for x in (q, k, v))))
