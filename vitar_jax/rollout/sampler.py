"""The device side of rollout: three jitted programs over a fixed number of slots.

`encode` turns a batch of images into features. `prefill` appends tokens to the caches of some slots: a prompt, or an
observation in the middle of an episode. `decode` samples a chunk of tokens in all slots. Decoding at cache length n means
sampling the token of position n from the logits of position n - 1.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.attention import find_back_end
from vitar_jax.models.decoder import place_features, run_layers
from vitar_jax.models.kernels.backend import BackEnd
from vitar_jax.parallel.mesh import BATCH, bins, on_mesh
from vitar_jax.rollout.kv_cache import KVCache, put_rows, take_rows
from vitar_jax.rollout.sampling import SamplingState, sample_tokens, uniforms
from vitar_jax.rollout.weights import RolloutWeights


@partial(jax.tree_util.register_dataclass, data_fields=["token_ids", "states", "counts"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Marks:
    """The last hidden states at a marked token, such as `[SEG]`, of the turn in progress of each slot.

    A state is of the step that reads the token, after the last norm. The token that ends a turn is not read.

    Attributes:
      token_ids: The marked token.
      counts: Number of marked tokens that were read. Only the first K states are kept.
    """

    token_ids: Int[Array, " B"]
    states: Float[Array, "B K D"]
    counts: Int[Array, " B"]

    @classmethod
    def create(cls, token_id: int, shape: tuple[int, int, int], dtype: str) -> "Marks":
        return cls(jnp.full(shape[0], token_id, jnp.int32), jnp.zeros(shape, dtype), jnp.zeros(shape[0], jnp.int32))

    def cleared(self) -> "Marks":
        return dataclasses.replace(self, counts=jnp.zeros_like(self.counts))

    def kept(self, token: Int[Array, " B"], hidden: Float[Array, "B D"], reads: Int[Array, " B"]) -> "Marks":
        """Returns the marks after a step that reads one token in each slot where `reads` is 1."""
        marked = (token == self.token_ids) & (reads > 0)
        written = marked[:, None] & (jnp.arange(self.states.shape[1]) == self.counts[:, None])
        states = jnp.where(written[..., None], hidden[:, None].astype(self.states.dtype), self.states)
        return dataclasses.replace(self, states=states, counts=self.counts + marked)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache", "logits", "next_position", "done", "marks"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The state of all slots between two device calls.

    Attributes:
      logits: fp32 logits of the last token in each slot's cache.
      next_position: Rotary position of the next token.
      done: Whether the slot's turn has ended. The next prefill of the slot resets it.
      marks: States at a marked token, or None if no token is marked. The next prefill of the slot resets their counts.
    """

    cache: KVCache
    logits: Float[Array, "B V"]
    next_position: Int[Array, " B"]
    done: Bool[Array, " B"]
    marks: Marks | None = None


@partial(jax.jit, static_argnames=("slots", "capacity", "marked", "marks"))
def create_state(
    weights: RolloutWeights, slots: int, capacity: int, *, marked: int | None = None, marks: int = 0
) -> DecodeState:
    """Returns an empty state.

    Args:
      capacity: Maximum number of tokens of an episode.
      marked: Token whose states are kept, up to `marks` of them in a turn.
    """
    text = weights.config.text
    state = DecodeState(
        cache=KVCache.create(
            text.num_hidden_layers,
            slots,
            capacity,
            text.num_key_value_heads,
            text.head_dim,
            weights.config.dtype,
        ),
        logits=jnp.zeros((slots, text.vocab_size), jnp.float32),
        next_position=jnp.zeros(slots, jnp.int32),
        done=jnp.ones(slots, bool),
        marks=None if marked is None else Marks.create(marked, (slots, marks, text.hidden_size), weights.config.dtype),
    )
    return spread(state, weights.mesh)


def state_shardings(state: DecodeState, mesh: Mesh) -> Any:
    """Shards slots over the data shards and key-value heads over the tensor axis, if these divide them."""
    slots, kv_heads = state.cache.keys[0].shape[:2]
    batch = BATCH if slot_shards(slots, mesh) > 1 else None
    heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
    return jax.tree.map(lambda leaf: NamedSharding(mesh, P(batch, heads) if leaf.ndim == 4 else P(batch)), state)


def slot_shards(slots: int, mesh: Mesh | None) -> int:
    """Returns the number of data shards that hold blocks of slots: all, or 1 if they do not divide the slots."""
    return bins(mesh) if mesh is not None and slots % bins(mesh) == 0 else 1


def spread(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """Constrains a state to the shardings of a mesh. None means one device."""
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh))


@partial(jax.jit, static_argnames="rows")
def feature_buffer(weights: RolloutWeights, rows: int) -> Float[Array, "F D"]:
    """Returns an empty buffer for the image features of one prefill batch."""
    return jnp.zeros((rows, weights.config.feature_width), weights.config.dtype)


@partial(jax.jit, donate_argnames="features")
def encode(
    weights: RolloutWeights,
    features: Float[Array, "F D"],
    pixels: Float[Array, "N P C"],
    patch_positions: Int[Array, "N W X 2"],
    offset: Int[Array, ""],
) -> Float[Array, "F D"]:
    """Encodes N images of one size class and writes their features to the buffer from row `offset` on."""
    with on_mesh(weights.mesh):
        new = weights.visual(pixels, patch_positions, jnp.dtype(weights.config.dtype))
    return jax.lax.dynamic_update_slice(features, new.reshape(-1, new.shape[-1]), (offset, 0))


@partial(jax.jit, donate_argnames="state")
def prefill(
    weights: RolloutWeights,
    state: DecodeState,
    features: Float[Array, "F D"],
    slots: Int[Array, "R G"],
    starts: Int[Array, " R"],
    token_ids: Int[Array, "R T"],
    vision_index: Int[Array, "R T"],
    position_ids: Int[Array, "R 3 T"],
    counts: Int[Array, " R"],
) -> DecodeState:
    """Appends `counts[row]` tokens to the first `starts[row]` tokens of a slot's cache.

    Args:
      slots: The slots of each row. The first slot's cache is extended, and all slots of the row become equal to it. Each
        block of R / shards rows has the slots of one data shard (`slot_shards`). Numbers past the last slot mean no slot.
      vision_index: Row of `features` for an image token, -1 for text.
    """
    shards = slot_shards(state.done.shape[0], weights.mesh)
    cache = dataclasses.replace(take_rows(state.cache, slots[:, 0], shards), lengths=starts)
    embeddings, injections = place_features(weights.embed(token_ids), features, vision_index)
    with on_mesh(weights.mesh):
        hidden, cache = forward(weights, cache, embeddings, position_ids, counts, injections)
    end = jnp.maximum(counts - 1, 0)[:, None]
    last = jnp.take_along_axis(hidden, end[..., None], axis=1)[:, 0]
    row_state = DecodeState(
        cache=cache,
        logits=weights.logits(last),
        # The last token has the largest position, also if it ends an image or a video.
        next_position=jnp.take_along_axis(position_ids.max(axis=1), end, axis=1)[:, 0] + 1,
        done=jnp.zeros(len(counts), bool),
        marks=None if state.marks is None else take_rows(state.marks, slots[:, 0], shards).cleared(),
    )
    return spread(put_rows(state, slots, row_state, shards), weights.mesh)


@partial(jax.jit, static_argnames=("steps", "reach"), donate_argnames="state")
def decode(
    weights: RolloutWeights,
    state: DecodeState,
    sampling: SamplingState,
    budgets: Int[Array, " B"],
    quorum: Int[Array, ""],
    *,
    steps: int,
    reach: int | None = None,
) -> tuple[DecodeState, Int[Array, "B steps"], Float[Array, "B steps"], Int[Array, " B"]]:
    """Samples until `quorum` turns have ended, or all active turns have, or for `steps` tokens.

    Args:
      budgets: Number of tokens that each slot's turn may still have; 0 for an inactive slot.
      reach: Number of cache positions that attention reads. No active slot has more tokens after these steps. If None, all.

    Returns:
      The state, the tokens and their log-probabilities [slots, steps], and the number of tokens that each slot sampled. The
      last token of a turn is not in the cache. The next `prefill` appends it.
    """
    slots = state.done.shape[0]
    state = dataclasses.replace(state, done=state.done | (budgets <= 0))
    idle = state.done.sum()
    # A slot samples at every step until its turn ends, so all positions of the chunk are known here.
    uniform = uniforms(sampling, state.cache.lengths[:, None] + jnp.arange(steps))
    sampled = (
        jnp.zeros((slots, steps), jnp.int32),
        jnp.zeros((slots, steps), jnp.float32),
        jnp.zeros(slots, jnp.int32),
    )

    def go_on(carry: tuple[jax.Array, DecodeState, Any]) -> jax.Array:
        step, state, _ = carry
        return (step < steps) & ~state.done.all() & (state.done.sum() - idle < quorum)

    def step_on(carry: tuple[jax.Array, DecodeState, Any]) -> tuple[jax.Array, DecodeState, Any]:
        step, state, (tokens, logprobs, counts) = carry
        active = ~state.done
        token, logprob = sample_tokens(state.logits, sampling, uniform[:, step])
        tokens = tokens.at[:, step].set(jnp.where(active, token, 0))
        logprobs = logprobs.at[:, step].set(jnp.where(active, logprob, 0.0))
        counts = counts + active
        done = state.done | (token[:, None] == sampling.stop_ids).any(axis=1) | (counts >= budgets)
        reads = (~done).astype(jnp.int32)  # the token that ends a turn is not an input
        hidden, cache = forward(
            weights,
            state.cache,
            weights.embed(token)[:, None],
            jnp.broadcast_to(state.next_position[:, None, None], (slots, 3, 1)),
            reads,
            reach=reach,
        )
        state = DecodeState(
            cache=cache,
            logits=jnp.where(done[:, None], state.logits, weights.logits(hidden[:, 0])),
            next_position=state.next_position + reads,
            done=done,
            marks=None if state.marks is None else state.marks.kept(token, hidden[:, 0], reads),
        )
        return step + 1, state, (tokens, logprobs, counts)

    _, state, sampled = jax.lax.while_loop(go_on, step_on, (jnp.int32(0), state, sampled))
    return spread(state, weights.mesh), *sampled


def forward(
    weights: RolloutWeights,
    cache: KVCache,
    embeddings: Float[Array, "B T D"],
    position_ids: Int[Array, "B 3 T"],
    counts: Int[Array, " B"],
    injections: Sequence[Float[Array, "B T D"]] = (),
    reach: int | None = None,
    back_end: BackEnd | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Runs new tokens through the decoder over the cache and appends the first `counts` of them to it.

    Args:
      reach: Number of cache positions that attention reads. If None, all.
      back_end: What computes attention. If None, the model's back end.
    """
    reach = cache.capacity if reach is None else reach
    places = cache.places(counts, embeddings.shape[1])
    back_end = back_end or find_back_end(weights.config.attention)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, layer: int) -> tuple[jax.Array, None]:
        nonlocal cache
        cache = cache.write(layer, places, k, v)
        return cache.attend(layer, q, k, v, counts, back_end, reach), None

    rotary = weights.config.text.rotary(position_ids)
    x, _ = run_layers(weights.layers, embeddings.astype(weights.config.dtype), rotary, attend, injections=injections)
    return weights.norm(x), cache.grow(counts)
