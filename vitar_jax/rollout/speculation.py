"""Decode with drafts: one step reads the next token and a draft of those after it, and keeps the draft where it is right.

A draw depends on the logits and on (seed, sample, member, position) alone. A drafted token is therefore verified exactly: the
token at its position is drawn as decode without drafts draws it, and the draft is kept while both are the same. The first draw
that differs is the next step's token, drawn from the same logits. A rejected token is in the cache, past its length, where
nothing reads it and the next token is written.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.attention import find_back_end
from vitar_jax.models.kernels.xla import attend_cached
from vitar_jax.rollout.drafts import Texts, look_up
from vitar_jax.rollout.sampler import DecodeState, forward, spread
from vitar_jax.rollout.sampling import SamplingState, sample_tokens, uniforms
from vitar_jax.rollout.weights import RolloutWeights


@partial(jax.jit, static_argnames=("steps", "drafted", "reach"), donate_argnames="state")
def decode_drafted(
    weights: RolloutWeights,
    state: DecodeState,
    sampling: SamplingState,
    budgets: Int[Array, " B"],
    quorum: Int[Array, ""],
    texts: Texts,
    *,
    steps: int,
    drafted: int,
    reach: int | None = None,
) -> tuple[DecodeState, Int[Array, "B tokens"], Float[Array, "B tokens"], Int[Array, " B"], Int[Array, " B"]]:
    """Samples as `sampler.decode` does, up to `1 + drafted` tokens per slot in each of at most `steps` steps.

    Args:
      texts: Texts that end with each slot's tokens so far; drafts are looked up in them.

    Returns:
      As `sampler.decode`, with arrays of `steps * (1 + drafted)` tokens, and the number of steps in which each slot sampled.
    """
    slots, most = state.done.shape[0], 1 + drafted
    state = dataclasses.replace(state, done=state.done | (budgets <= 0))
    idle = state.done.sum()
    # XLA's attention with any back end: kernels for prefill compute whole blocks of queries, and may copy the cache.
    back_end = dataclasses.replace(find_back_end(weights.config.attention), cached=attend_cached)
    per_draft = dataclasses.replace(jax.tree.map(lambda x: jnp.repeat(x, drafted, axis=0), sampling), banned=sampling.banned)
    sampled = (
        jnp.zeros((slots, steps * most), jnp.int32),
        jnp.zeros((slots, steps * most), jnp.float32),
        jnp.zeros(slots, jnp.int32),
        jnp.zeros(slots, jnp.int32),
    )

    def go_on(carry: tuple[jax.Array, DecodeState, Texts, Any]) -> jax.Array:
        step, state, _, _ = carry
        return (step < steps) & ~state.done.all() & (state.done.sum() - idle < quorum)

    def step_on(carry: tuple[jax.Array, DecodeState, Texts, Any]) -> tuple[jax.Array, DecodeState, Texts, Any]:
        step, state, texts, (tokens, logprobs, counts, used) = carry
        active, places = ~state.done, jnp.arange(most)
        uniform = uniforms(sampling, state.cache.lengths[:, None] + places)
        token, logprob = sample_tokens(state.logits, sampling, uniform[:, 0])
        done = state.done | _stops(token, sampling) | (counts + 1 >= budgets)

        texts = texts.appended(token[:, None], active.astype(jnp.int32))
        draft, known = look_up(texts, drafted)
        # No draft goes past the token that ends the turn, or past its budget.
        open_before = jnp.cumprod(jnp.pad(~_stops(draft, sampling), ((0, 0), (1, 0)), constant_values=True)[:, :-1], axis=1)
        known = jnp.minimum(jnp.minimum(known, open_before.sum(axis=1)), budgets - counts - 1)
        known = jnp.where(done, 0, known)

        read = jnp.concatenate([token[:, None], draft], axis=1)
        hidden, cache = forward(
            weights,
            state.cache,
            weights.embed(read),
            jnp.broadcast_to((state.next_position[:, None] + places)[:, None], (slots, 3, most)),
            jnp.where(done, 0, 1 + known),
            reach=reach,
            back_end=back_end,
        )
        logits = weights.logits(hidden)
        drawn, of_drawn = sample_tokens(
            logits[:, :-1].reshape(slots * drafted, -1), per_draft, uniform[:, 1:].reshape(slots * drafted, 2)
        )
        right = (drawn.reshape(draft.shape) == draft) & (places[:-1] < known[:, None])
        kept = jnp.cumprod(right, axis=1).sum(axis=1)
        new = jnp.where(active, 1 + kept, 0)
        last = jnp.take_along_axis(read, kept[:, None], axis=1)[:, 0]
        done = done | _stops(last, sampling) | (counts + new >= budgets)
        reads = jnp.where(active, new - done, 0)  # the token that ends a turn is not an input

        into = jnp.where(places < new[:, None], counts[:, None] + places, steps * most)
        rows = jnp.arange(slots)[:, None]
        of_read = jnp.concatenate([logprob[:, None], of_drawn.reshape(draft.shape)], axis=1)
        tokens = tokens.at[rows, into].set(read, mode="drop")
        logprobs = logprobs.at[rows, into].set(of_read, mode="drop")
        of_last = jnp.take_along_axis(logits, jnp.maximum(reads - 1, 0)[:, None, None], axis=1)[:, 0]
        marks = state.marks
        if marks is not None:
            for place in range(most):
                marks = marks.kept(read[:, place], hidden[:, place], (place < reads).astype(jnp.int32))
        state = DecodeState(
            cache=dataclasses.replace(cache, lengths=state.cache.lengths + reads),
            logits=jnp.where((reads > 0)[:, None], of_last, state.logits),
            next_position=state.next_position + reads,
            done=done,
            marks=marks,
        )
        texts = texts.appended(draft, jnp.where(active, kept, 0))
        return step + 1, state, texts, (tokens, logprobs, counts + new, used + active)

    _, state, _, sampled = jax.lax.while_loop(go_on, step_on, (jnp.int32(0), state, texts, sampled))
    return spread(state, weights.mesh), *sampled


def _stops(tokens: Int[Array, "*B"], sampling: SamplingState) -> Bool[Array, "*B"]:
    """Returns whether each token ends a turn of its slot."""
    stop_ids = sampling.stop_ids.reshape(len(tokens), *[1] * (tokens.ndim - 1), -1)
    return (tokens[..., None] == stop_ids).any(axis=-1)
