"""How much each turn of a text attends to every token, by layer and head, without the attention ever being there whole."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitar_jax.models.attention import attend_and_show
from vitar_jax.models.decoder import DecoderLayer, merge_features
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
) -> Float[Array, "L R H S"]:
    """Attention probabilities of the decoder, as means over the query tokens of each of R `turns`; fp32.

    Queries are taken in blocks of `rows`: [H, rows, S] probabilities exist at a time, and [R, H, S] means a layer are kept.

    Args:
      features: `vision_index` points into these; -1 is text.
      turn_ids: the turn that a token is a query of, from 0; -1: of none. Padding stands at the end and is of none.

    Raises:
      ValueError: the length is no multiple of `rows`.
    """
    length = len(token_ids)
    if length % rows:
        raise ValueError(f"{length} tokens are not a multiple of {rows} rows")
    is_query = turn_ids == jnp.arange(turns)[:, None]
    weights = is_query / jnp.maximum(is_query.sum(axis=1, keepdims=True), 1)
    rotary = model.config.text.rotary(position_ids[None])

    def apply(x: jax.Array, layer: DecoderLayer) -> tuple[jax.Array, jax.Array]:
        kept: list[jax.Array] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            out, means = _attend_in_blocks(q[0], k[0], v[0], weights, rows)
            kept.append(means)
            return out[None]

        x = layer(x, rotary, attend)
        return x, kept[0]

    x = merge_features(model.embed(token_ids), features, vision_index)
    return jax.lax.scan(apply, x[None], model.model.layers)[1]


def _attend_in_blocks(
    q: Float[Array, "S H E"], k: Float[Array, "S K E"], v: Float[Array, "S K E"], weights: Float[Array, "R S"], rows: int
) -> tuple[Float[Array, "S H E"], Float[Array, "R H S"]]:
    """Causal attention, and its probabilities summed over queries with `weights`."""
    length, heads, _ = q.shape
    places = jnp.arange(length)

    def block(total: jax.Array, queries: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, place, weight = queries
        out, probs = attend_and_show(q, k, v, place[:, None] >= places)
        return total + jnp.einsum("tr,ktgs->rkgs", weight, probs).reshape(total.shape), out

    blocks = tuple(x.reshape(length // rows, rows, *x.shape[1:]) for x in (q, places, weights.T))
    means, out = jax.lax.scan(block, jnp.zeros((len(weights), heads, length), jnp.float32), blocks)
    return out.reshape(q.shape), means
