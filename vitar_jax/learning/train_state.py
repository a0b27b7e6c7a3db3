"""What training carries from step to step, and the jitted step itself."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from vitar_jax.learning.grpo_loss import (
    LARGEST,
    Counts,
    GRPOConfig,
    Metrics,
    count_batch,
    grpo_loss,
    masked_mean,
    sampler_gap,
    sft_loss,
)
from vitar_jax.learning.trainable import Learning, join
from vitar_jax.models.logprobs import token_logprobs
from vitar_jax.models.lora import merge_lora
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.mesh import ShardingRules, on_mesh, shardings
from vitar_jax.processing.packing import Batch

TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "model", "opt_state", "skipped", "skipped_in_a_row"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step counter, weights (fp32; frozen ones may be of another type) and the optimizer's state.

    Attributes:
      step: steps made, with or without an update.
      skipped: those without one, as loss or gradient were not finite.
      skipped_in_a_row: those of them since the last update.
    """

    step: Int[Array, ""]
    model: VisionLanguageModel
    opt_state: Any
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


def create_train_state(
    make_model: Callable[[], VisionLanguageModel],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    learning: Learning = Learning(),
) -> TrainState:
    """Makes the state in its sharding; no device ever holds more than its part."""
    _, spread = abstract_train_state(make_model, optimizer, mesh, rules, learning)
    return jax.jit(lambda: first_state(make_model(), optimizer, learning), out_shardings=spread)()


def abstract_train_state(
    make_model: Callable[[], VisionLanguageModel],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    learning: Learning = Learning(),
) -> tuple[Any, Any]:
    """Shapes of the state, and its shardings; the model that is made may be abstract too."""
    abstract = jax.eval_shape(lambda model: first_state(model, optimizer, learning), jax.eval_shape(make_model))
    return abstract, shardings(abstract, mesh, rules)


def first_state(model: Any, optimizer: optax.GradientTransformation, learning: Learning = Learning()) -> TrainState:
    """The state at step 0, where the model lies."""
    model = learning.prepare(model)
    opt_state = optimizer.init(learning.split(model)[0])  # to optax, a model is any pytree
    return TrainState(jnp.int32(0), model, opt_state, jnp.int32(0), jnp.int32(0))


def restart(
    model: VisionLanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    learning: Learning = Learning(),
) -> TrainState:
    """A state at step 0 around weights that exist."""
    _, spread = abstract_train_state(lambda: model, optimizer, mesh, rules, learning)
    return jax.jit(lambda model: first_state(model, optimizer, learning), out_shardings=spread)(model)


def policy_logprobs(
    model: VisionLanguageModel,
    batch: Batch,
    banned: Bool[Array, " V"],
    *,
    temperature: float,
    max_tokens: int | None,
    chunk: int,
) -> tuple[Array, Array]:
    """Log-probabilities and entropies of a device batch's policy tokens, [bins, rows, S] each."""
    hidden = model(**batch.inputs)
    return token_logprobs(
        hidden,
        model.head(),
        batch.token_ids,
        batch.loss_mask,
        banned,
        temperature=temperature,
        max_tokens=max_tokens,
        chunk=chunk,
    )


def reference_weights(model: VisionLanguageModel) -> VisionLanguageModel:
    """A copy that stays as it is while the model learns, adapters merged, in the type that the model computes in."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf).astype(model.config.dtype), merge_lora(model))


def make_train_step(
    optimizer: optax.GradientTransformation,
    banned: Bool[Array, " V"],
    *,
    grpo: GRPOConfig | None,
    learning: Learning = Learning(),
    temperature: float = 1.0,
    max_tokens: int | None = None,
    chunk: int = 1024,
    mesh: Mesh | None = None,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One optimizer step of SFT, or GRPO's `updates` on a batch that has `old_logprobs` (the sampler's) and `advantages`.

    Where GRPO has a KL term, the step takes `reference_weights` after state and batch.

    Where loss or gradient norm are not finite, weights and the optimizer's state, its schedule too, stay as they are.

    Args:
      micro_batches: parts of the batch whose gradients are computed one after another and added up. A batch has so many bins
        for each data shard; every part takes one of them. GRPO's minibatches take as many parts each.
      mesh: that state and batch lie on; None is one device.
    """
    minibatches = grpo.minibatches if grpo else 1
    parts = micro_batches // minibatches  # of a minibatch
    score = partial(policy_logprobs, banned=banned, temperature=temperature, max_tokens=max_tokens, chunk=chunk)

    def loss_fn(learnt: Any, frozen: Any, batch: Batch, counts: Counts) -> tuple[Array, Metrics]:
        model = join(learnt, frozen)
        mask = batch.loss_mask
        logprobs, entropies = score(model, batch)
        if grpo is None:
            loss, metrics = sft_loss(logprobs, mask, counts.tokens)
        else:
            loss, metrics = grpo_loss(
                logprobs,
                batch.extras["old_logprobs"],
                batch.extras["advantages"],
                mask,
                batch.segment_ids,
                grpo,
                entropies=entropies,
                reference_logprobs=batch.extras.get("reference_logprobs"),
                sampler_logprobs=batch.extras.get("sampler_logprobs"),
                counts=counts,
            )
            sampled, scored = batch.extras["old_logprobs"], logprobs
            if "sampler_logprobs" in batch.extras:  # the weights that played have scored it before the first update
                sampled, scored = batch.extras["sampler_logprobs"], batch.extras["old_logprobs"]
            metrics |= sampler_gap(scored, sampled, mask, counts.tokens)
        tokens = jnp.sum(batch.segment_ids > 0)
        return loss, metrics | {"entropy": masked_mean(entropies, mask, counts.tokens), "tokens": tokens}

    def gradient(learnt: Any, frozen: Any, batch: Batch) -> tuple[Any, Metrics]:
        of_part = jax.grad(loss_fn, has_aux=True)
        empty = grpo is not None and grpo.count_empty
        counts = count_batch(batch.loss_mask, batch.segment_ids, empty=empty)
        if parts == 1:
            return of_part(learnt, frozen, batch, counts)

        def add(total: Any, part: Batch) -> tuple[Any, Metrics]:
            grads, metrics = of_part(learnt, frozen, part, counts)
            return jax.tree.map(jnp.add, total, grads), metrics

        grads, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, learnt), _cut(batch, parts, parts))
        return grads, _merge(metrics, jnp.sum)

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learnt, frozen = learning.split(state.model)
        with on_mesh(mesh):
            grads, metrics = gradient(learnt, frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        learnt, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(learnt, updates), opt_state),
            (learnt, state.opt_state),
        )
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        return TrainState(state.step + 1, join(learnt, frozen), opt_state, skipped, in_a_row), metrics | {
            "grad_norm": grad_norm
        }

    def logprobs_of(model: VisionLanguageModel, batch: Batch) -> Array:
        with on_mesh(mesh):
            logprobs = jax.lax.map(lambda part: score(model, part)[0], _cut(batch, micro_batches, micro_batches))
        return jnp.moveaxis(logprobs, 0, 1).reshape(batch.token_ids.shape)

    def learn(state: TrainState, batch: Batch, reference: VisionLanguageModel | None) -> tuple[TrainState, Metrics]:
        if grpo is None:
            return update(state, batch)
        if grpo.old_logprobs == "trainer":
            batch = batch.with_extras(
                sampler_logprobs=batch.extras["old_logprobs"], old_logprobs=logprobs_of(state.model, batch)
            )
        if grpo.kl_coefficient:
            assert reference is not None
            batch = batch.with_extras(reference_logprobs=logprobs_of(reference, batch))
        if grpo.updates == 1:
            return update(state, batch)
        cut = _cut(batch, minibatches, micro_batches)

        def nth(state: TrainState, n: Array) -> tuple[TrainState, Metrics]:
            return update(state, jax.tree.map(lambda x: x[n % minibatches], cut))

        learnt, metrics = jax.lax.scan(nth, state, jnp.arange(grpo.updates))
        return dataclasses.replace(learnt, step=state.step + 1), _merge(metrics, jnp.mean)

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: Batch, reference: VisionLanguageModel | None = None) -> tuple[TrainState, Metrics]:
        state, metrics = learn(state, batch, reference)
        if grpo is not None:  # (sum w)^2 / (n sum w^2)
            metrics["effective_sample_size"] = metrics["ratio_mean"] ** 2 / jnp.maximum(metrics.pop("ratio_square"), 1e-30)
        return state, metrics | {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}

    return train_step


def _cut(batch: Batch, count: int, parts: int) -> Batch:
    """[shards * parts, ...] -> [count, shards * parts / count, ...]; a shard's bins are neighbours."""

    def cut(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(-1, count, parts // count, *x.shape[1:]), 1, 0)
        return x.reshape(count, -1, *x.shape[3:])

    return jax.tree.map(cut, batch)


def _merge(metrics: Metrics, usual: Callable[[Array], Array]) -> Metrics:
    """Metrics of all parts or updates from those of each."""
    return {name: (jnp.max if name in LARGEST else usual)(values) for name, values in metrics.items()}
