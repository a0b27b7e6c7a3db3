"""The jitted train step: micro-batches, updates, and the guard against non-finite losses and gradients."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from vitar_jax.learning.mask_loss import batch_mask_loss
from vitar_jax.learning.objective import Metrics, Objective, TokenScores, masked_mean, score_tokens
from vitar_jax.learning.train_state import TrainState
from vitar_jax.learning.trainable import Trainable, join
from vitar_jax.parallel.mesh import on_mesh
from vitar_jax.processing.packing import Batch


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    banned: Bool[Array, " V"],
    *,
    trainable: Trainable = Trainable(),
    max_tokens: int | None = None,
    chunk: int = 1024,
    mesh: Mesh | None = None,
    shardings: Any = None,
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the train step, a function of state, batch and, if the objective needs them, `reference_weights`.

    If the objective fills micro-batches, those without tokens are skipped. Their number is an array, so that one program serves
    every batch, and the same on all shards.

    An update whose loss or gradient norm is not finite is skipped. Weights and optimizer state then do not change.

    Args:
      max_tokens: Largest number of policy tokens of a bin.
      mesh: Mesh of state and batch. If None, there is one device.
      shardings: Shardings of the state, a tree of its structure. If None, XLA chooses those of the returned state. If they
        differ, the next step compiles again.
      micro_batches: Number of bins per data shard. Gradients of one bin per shard are computed at a time and added up; the
        bins are divided evenly among the objective's minibatches.
    """
    passes = objective.passes
    per_update = micro_batches // passes.minibatches
    score = partial(score_tokens, banned=banned, temperature=objective.scoring_temperature, max_tokens=max_tokens, chunk=chunk)

    def loss_fn(learnt: Any, frozen: Any, batch: Batch, counts: Any, mask_count: Array | None) -> tuple[Array, Metrics]:
        model = join(learnt, frozen)
        hidden = model(**batch.inputs)
        scores = score(model, hidden, batch)
        loss, metrics = objective.loss(scores, batch, counts)
        if objective.masks is not None:
            assert batch.masks is not None and mask_count is not None
            logits = model.masks_of(hidden, batch.masks)
            of_masks, mask_metrics = batch_mask_loss(logits, batch.masks, objective.masks, mask_count)
            loss, metrics = loss + of_masks, metrics | mask_metrics
        entropy = masked_mean(scores.entropies, batch.loss_mask, counts.tokens)
        return loss, {"loss": loss, "entropy": entropy, "tokens": jnp.sum(batch.segment_ids > 0), **metrics}

    def gradient(learnt: Any, frozen: Any, batch: Batch) -> tuple[Any, Metrics]:
        mask_count = None if batch.masks is None else jnp.sum(batch.masks.valid)
        gradient_of = partial(jax.grad(loss_fn, has_aux=True), counts=objective.counts(batch), mask_count=mask_count)
        if per_update == 1:
            return gradient_of(learnt, frozen, batch)

        def add(total: Any, micro_batch: Batch) -> tuple[Any, Metrics]:
            grads, metrics = gradient_of(learnt, frozen, micro_batch)
            return jax.tree.map(jnp.add, total, grads), metrics

        zeros, parts = jax.tree.map(jnp.zeros_like, learnt), _split(batch, per_update, per_update)
        if not objective.fills_micro_batches:
            grads, metrics = jax.lax.scan(add, zeros, parts)
            return grads, _merge(metrics, jnp.sum)

        def add_filled(total: tuple[Any, Metrics], micro_batch: Batch, _: Array) -> tuple[Any, Metrics]:
            grads, found = add(total[0], micro_batch)
            return grads, {
                name: (jnp.maximum if _is_maximum(name) else jnp.add)(value, found[name]) for name, value in total[1].items()
            }

        shapes = jax.eval_shape(lambda parts: add(zeros, _nth(parts, 0))[1], parts)
        nothing = {name: jnp.full(m.shape, -jnp.inf if _is_maximum(name) else 0, m.dtype) for name, m in shapes.items()}
        (grads, metrics), count = _fold_filled(add_filled, (zeros, nothing), parts)
        return grads, metrics | {"filled_share": count / per_update}

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        learnt, frozen = trainable.split(state.model)
        with on_mesh(mesh):
            grads, metrics = gradient(learnt, frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, learnt)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        new, old = (optax.apply_updates(learnt, updates), opt_state), (learnt, state.opt_state)
        learnt, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        skipped, in_a_row = state.skipped + ~finite, jnp.where(finite, 0, state.skipped_in_a_row + 1)
        state = TrainState(state.step + 1, join(learnt, frozen), opt_state, skipped, in_a_row)
        return state, metrics | {"grad_norm": grad_norm}

    def by_micro_batch(values_of: Callable[[Batch], Any], batch: Batch) -> Any:
        """Computes values per token, one bin per shard at a time."""
        parts = _split(batch, micro_batches, micro_batches)

        def put(found: Any, micro_batch: Batch, number: Array) -> Any:
            return jax.tree.map(lambda all_, values: all_.at[number].set(values), found, values_of(micro_batch))

        with on_mesh(mesh):
            if objective.fills_micro_batches:
                shapes = jax.eval_shape(lambda parts: values_of(_nth(parts, 0)), parts)
                zeros = jax.tree.map(lambda values: jnp.zeros((micro_batches, *values.shape), values.dtype), shapes)
                found, _ = _fold_filled(put, zeros, parts)
            else:
                found = jax.lax.map(values_of, parts)
        return jax.tree.map(lambda values: jnp.moveaxis(values, 0, 1).reshape(batch.token_ids.shape), found)

    def scores_of(model: Any, batch: Batch) -> TokenScores:
        return score(model, model(**batch.inputs), batch)

    def logprobs_of(model: Any, batch: Batch) -> Array:
        return by_micro_batch(lambda micro_batch: scores_of(model, micro_batch).logprobs, batch)

    def updates(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if passes.updates == 1:
            return update(state, batch)
        minibatches = _split(batch, passes.minibatches, micro_batches)

        def nth(state: TrainState, n: Array) -> tuple[TrainState, Metrics]:
            return update(state, jax.tree.map(lambda x: x[n % passes.minibatches], minibatches))

        learnt, metrics = jax.lax.scan(nth, state, jnp.arange(passes.updates))
        return dataclasses.replace(learnt, step=state.step + 1), _merge(metrics, jnp.mean)

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, None))
    def train_step(state: TrainState, batch: Batch, reference: Any = None) -> tuple[TrainState, Metrics]:
        of_reference = None if reference is None else partial(logprobs_of, reference)
        of_policy = partial(logprobs_of, state.model)
        if objective.needs_entropies:
            scores = by_micro_batch(partial(scores_of, state.model), batch)
            batch, of_policy = batch.with_extras(entropies=scores.entropies), lambda batch: scores.logprobs
        batch = objective.annotate(batch, of_policy, of_reference)
        state, metrics = updates(state, batch)
        return state, objective.summarize(metrics) | {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}

    return train_step


def _split(batch: Batch, count: int, per_shard: int) -> Batch:
    """Splits [shards * per_shard, ...] into [count, shards * per_shard / count, ...]. The bins of a shard are adjacent."""

    def split(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(-1, count, per_shard // count, *x.shape[1:]), 1, 0)
        return x.reshape(count, -1, *x.shape[3:])

    return jax.tree.map(split, batch)


def _nth(batches: Batch, number: Any) -> Batch:
    return jax.tree.map(lambda x: x[number], batches)


def _fold_filled(step: Callable[[Any, Batch, Array], Any], start: Any, batches: Batch) -> tuple[Any, Array]:
    """Folds a function of a value, a micro-batch and its number over the micro-batches that hold tokens on any shard.

    Returns:
      The value, and the number of these micro-batches, which is an array and at least 1.
    """
    holds = jnp.any(batches.segment_ids > 0, axis=(1, 2, 3))
    order, most = jnp.argsort(~holds, stable=True), len(holds)
    count = jnp.maximum(jnp.sum(holds), 1)

    def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        done, value = carry
        return done + 1, step(value, _nth(batches, order[done]), order[done])

    # The constant bound changes nothing; `vitar_jax.plan` reads it from the compiled loop.
    return jax.lax.while_loop(lambda carry: (carry[0] < most) & (carry[0] < count), body, (jnp.int32(0), start))[1], count


def _is_maximum(metric: str) -> bool:
    return metric.endswith("_max")


def _merge(metrics: Metrics, usual: Callable[[Array], Array]) -> Metrics:
    """Merges the metrics of all micro-batches or updates."""
    return {name: (jnp.max if _is_maximum(name) else usual)(values) for name, values in metrics.items()}
