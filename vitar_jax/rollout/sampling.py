"""Samples tokens from logits, with settings per slot. A sample does not depend on its slot or on other slots."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.logprobs import shape_logits


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p", "min_p", "seeds", "samples", "members", "stop_ids", "banned"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class SamplingState:
    """The sampling settings of each slot (`episodes.trajectory.Sampling`). All are arrays, so no value needs a new program.

    Attributes:
      seeds, samples, members: Together with a token's position, the key of its random numbers.
      stop_ids: Padded with -1.
      banned: Ids that are never sampled.
    """

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    seeds: Int[Array, " B"]
    samples: Int[Array, " B"]
    members: Int[Array, " B"]
    stop_ids: Int[Array, "B stops"]
    banned: Bool[Array, " V"]


_BLOCK = 256  # number of tokens per block of the vocabulary
STOP_IDS = 8  # maximum number of stop ids, including `<|im_end|>`


def sampling_arrays(slots: int) -> dict[str, Any]:
    """Returns the arrays of a `SamplingState` except `banned`, to be filled in."""
    return {
        "temperature": np.ones(slots, np.float32),
        "top_k": np.zeros(slots, np.int32),
        "top_p": np.ones(slots, np.float32),
        "min_p": np.zeros(slots, np.float32),
        "seeds": np.zeros(slots, np.uint32),
        "samples": np.zeros(slots, np.uint32),
        "members": np.zeros(slots, np.uint32),
        "stop_ids": np.full((slots, STOP_IDS), -1, np.int32),
    }


def uniforms(sampling: SamplingState, places: Int[Array, "B tokens"]) -> Float[Array, "B tokens 2"]:
    """Returns two uniform random numbers for the token at each position, from seed, sample, member and position alone."""

    def chance(seed: jax.Array, sample: jax.Array, member: jax.Array, places: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), member)
        return jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place), (2,)))(places)

    return jax.vmap(chance)(sampling.seeds, sampling.samples, sampling.members, places)


def sample_tokens(
    logits: Float[Array, "B V"], sampling: SamplingState, uniforms: Float[Array, "B 2"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Samples one token per slot. Its log-probability is that of the distribution before top-k, top-p and min-p."""
    logits = shape_logits(logits, sampling.banned, sampling.temperature)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    cuts = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    cut = jax.lax.cond(cuts.any(), lambda x: _cut(x, sampling), lambda x: x, logprobs)
    random, is_random = _place(uniforms, cut), sampling.temperature > 0
    token = jax.lax.cond(is_random.all(), lambda: random, lambda: jnp.where(is_random, random, _most_likely(logprobs)))
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]


def _place(uniforms: Float[Array, "B 2"], logprobs: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Samples one token per slot: first a block of the vocabulary, then a token of the block.

    Both steps invert the cumulative sum of probabilities. They take two random numbers; Gumbel noise takes one per token. A
    single cumulative sum over a large vocabulary would lose rare tokens to rounding.
    """
    probs = jnp.exp(logprobs)
    blocks = jnp.pad(probs, ((0, 0), (0, -probs.shape[1] % _BLOCK))).reshape(len(probs), -1, _BLOCK)
    block = _where_falls(uniforms[:, 0], blocks.sum(axis=-1))
    token = _where_falls(uniforms[:, 1], jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0])
    return jnp.minimum(block * _BLOCK + token, probs.shape[1] - 1)  # NaN would give an index past the last


def _where_falls(chance: Float[Array, " B"], weights: Float[Array, "B V"]) -> Int[Array, " B"]:
    """Returns the first index whose cumulative sum exceeds a fraction of the total. Never returns an index of weight 0."""
    sums = jnp.cumsum(weights, axis=-1)
    found = (sums > chance[:, None] * sums[:, -1:]) & (weights > 0)
    # A parallel cumulative sum need not be monotonic, so no index may be found.
    return jnp.where(found.any(axis=-1), _first(found), _most_likely(weights))


def _most_likely(weights: Float[Array, "B V"]) -> Int[Array, " B"]:
    return _first(weights == weights.max(axis=-1, keepdims=True))


def _first(found: Bool[Array, "B V"]) -> Int[Array, " B"]:
    """Returns the first true index, or the last index if none is true. `argmax` is ten times slower on CPUs."""
    last = found.shape[1] - 1
    return jnp.where(found, jnp.arange(last + 1), last).min(axis=-1)


def _cut(logprobs: Float[Array, "B V"], sampling: SamplingState) -> Float[Array, "B V"]:
    """Applies top_k, then top_p, then min_p. Always keeps the most likely token."""
    order = jnp.argsort(-logprobs, axis=-1)
    rank = jnp.arange(logprobs.shape[1])
    top_k = jnp.where(sampling.top_k > 0, sampling.top_k, rank.size)[:, None]
    probs = jnp.where(rank < top_k, jnp.take_along_axis(jnp.exp(logprobs), order, axis=-1), 0.0)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept = (rank < top_k) & (before < sampling.top_p[:, None] * probs.sum(axis=-1, keepdims=True))
    kept &= probs >= sampling.min_p[:, None] * probs[:, :1]
    keep = jnp.zeros_like(kept).at[jnp.arange(len(kept))[:, None], order].set(kept)
    return jnp.where(keep, logprobs, -jnp.inf)
