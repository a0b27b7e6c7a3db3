"""Mean attention of each turn to every token, by layer and head. The attention of all queries never exists at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitar_jax.models.decoder import place_features, run_layers
from vitar_jax.models.kernels.xla import attend_and_show
from vitar_jax.models.vision_language import VisionLanguageModel


@partial(jax.jit, static_argnames=("turns", "rows"))
def mean_attention(
    model: VisionLanguageModel,
    features: Float[Array, "F D"],
    *,
    token_ids: Int[Array, " S"],
    position_ids: Int[Array, "3 S"],
    vision_index: Int[Array, " S"],
    turn_ids: Int[Array, " S"],
    turns: int,
    rows: int,
) -> Float[Array, "L turns H S"]:
    """Returns the decoder's attention probabilities, as fp32 means over the query tokens of each of `turns` turns.

    Queries are processed in blocks of `rows`: [H, rows, S] probabilities exist at one time, and [turns, H, S] means are kept
    per layer.

    Args:
      features: Image features that `vision_index` points into; -1 is text.
      turn_ids: The turn that a token is a query of, from 0, or -1. Padding follows all tokens and has -1.

    Raises:
      ValueError: If the length is not a multiple of `rows`.
    """
    length = len(token_ids)
    if length % rows:
        raise ValueError(f"mean_attention: got {length} tokens, expected a multiple of {rows} rows")
    is_query = turn_ids == jnp.arange(turns)[:, None]
    weights = is_query / jnp.maximum(is_query.sum(axis=1, keepdims=True), 1)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        out, means = _attend_in_blocks(q[0], k[0], v[0], weights, rows)
        return out[None], means

    x, injections = place_features(model.embed(token_ids), features, vision_index)
    rotary = model.config.text.rotary(position_ids[None])
    return run_layers(model.model.layers, x[None], rotary, attend, injections=[level[None] for level in injections])[1]


def _attend_in_blocks(
    q: Float[Array, "S H E"], k: Float[Array, "S K E"], v: Float[Array, "S K E"], weights: Float[Array, "turns S"], rows: int
) -> tuple[Float[Array, "S H E"], Float[Array, "turns H S"]]:
    """Returns causal attention, and its probabilities summed over queries with `weights`."""
    length, heads, _ = q.shape
    places = jnp.arange(length)

    def block(total: jax.Array, queries: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, place, weight = queries
        out, probs = attend_and_show(q, k, v, place[:, None] >= places)
        return total + jnp.einsum("tr,ktgs->rkgs", weight, probs).reshape(total.shape), out

    blocks = tuple(x.reshape(length // rows, rows, *x.shape[1:]) for x in (q, places, weights.T))
    means, out = jax.lax.scan(block, jnp.zeros((len(weights), heads, length), jnp.float32), blocks)
    return out.reshape(q.shape), means
