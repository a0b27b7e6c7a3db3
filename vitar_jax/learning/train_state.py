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

from vitar_jax.learning.objectives import (
    LARGEST,
    GRPOConfig,
    Metrics,
    grpo_loss,
    masked_mean,
    sampler_gap,
    sft_loss,
)
from vitar_jax.models.logprobs import token_logprobs
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.parallel.mesh import ShardingRules, on_mesh, shardings

TrainStep = Callable[["TrainState", dict[str, Array]], tuple["TrainState", Metrics]]
_MODEL_INPUTS = ("token_ids", "position_ids", "segment_ids", "vision_index", "pixels", "patch_positions")


@partial(jax.tree_util.register_dataclass, data_fields=["step", "model", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step counter, weights (fp32) and the optimizer's state."""

    step: Int[Array, ""]
    model: Qwen2_5_VL
    opt_state: Any


def create_train_state(
    make_model: Callable[[], Qwen2_5_VL],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
) -> TrainState:
    """Makes the state in its sharding; no device ever holds more than its part."""
    _, spread = abstract_train_state(make_model, optimizer, mesh, rules)
    return jax.jit(lambda: _first_state(make_model(), optimizer), out_shardings=spread)()


def abstract_train_state(
    make_model: Callable[[], Qwen2_5_VL], optimizer: optax.GradientTransformation, mesh: Mesh, rules: ShardingRules
) -> tuple[Any, Any]:
    """Shapes of the state, and its shardings."""
    abstract = jax.eval_shape(lambda: _first_state(make_model(), optimizer))
    return abstract, shardings(abstract, mesh, rules)


def _first_state(model: Any, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(jnp.int32(0), model, optimizer.init(model))  # to optax, a model is any pytree


def restart(model: Qwen2_5_VL, optimizer: optax.GradientTransformation, mesh: Mesh, rules: ShardingRules) -> TrainState:
    """A state at step 0 around weights that exist."""
    _, spread = abstract_train_state(lambda: model, optimizer, mesh, rules)
    return jax.jit(lambda model: _first_state(model, optimizer), out_shardings=spread)(model)


def policy_logprobs(
    model: Qwen2_5_VL,
    batch: dict[str, Array],
    banned: Bool[Array, " V"],
    *,
    temperature: float,
    max_tokens: int | None,
    chunk: int,
) -> tuple[Array, Array]:
    """Log-probabilities and entropies of a device batch's policy tokens, [bins, rows, S] each."""
    hidden = model(**{name: batch[name] for name in _MODEL_INPUTS})
    return token_logprobs(
        hidden,
        model.head(),
        batch["token_ids"],
        batch["loss_mask"],
        banned,
        temperature=temperature,
        max_tokens=max_tokens,
        chunk=chunk,
    )


def make_train_step(
    optimizer: optax.GradientTransformation,
    banned: Bool[Array, " V"],
    *,
    grpo: GRPOConfig | None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    chunk: int = 1024,
    mesh: Mesh | None = None,
    micro_batches: int = 1,
) -> TrainStep:
    """One optimizer step: SFT, or GRPO on a batch that has `old_logprobs` and `advantages`.

    Args:
      micro_batches: parts of the batch whose gradients are computed one after another and added up. A batch has so many bins
        for each data shard; every part takes one of them.
      mesh: that state and batch lie on; None is one device.
    """

    def loss_fn(model: Qwen2_5_VL, batch: dict[str, Array], count: Array) -> tuple[Array, Metrics]:
        mask = batch["loss_mask"]
        logprobs, entropy = policy_logprobs(model, batch, banned, temperature=temperature, max_tokens=max_tokens, chunk=chunk)
        if grpo is None:
            loss, metrics = sft_loss(logprobs, mask, count)
        else:
            loss, metrics = grpo_loss(logprobs, batch["old_logprobs"], batch["advantages"], mask, grpo, count)
            metrics |= sampler_gap(logprobs, batch["old_logprobs"], mask, count)
        tokens = jnp.sum(batch["segment_ids"] > 0)
        return loss, metrics | {"entropy": masked_mean(entropy, mask, count), "tokens": tokens}

    def gradient(model: Qwen2_5_VL, batch: dict[str, Array]) -> tuple[Any, Metrics]:
        of_part = jax.grad(loss_fn, has_aux=True)
        count = jnp.sum(batch["loss_mask"])
        if micro_batches == 1:
            return of_part(model, batch, count)

        def add(total: Any, part: dict[str, Array]) -> tuple[Any, Metrics]:
            grads, metrics = of_part(model, part, count)
            return jax.tree.map(jnp.add, total, grads), metrics

        def parts(x: Array) -> Array:  # [shards * parts, ...] -> [parts, shards, ...]; a shard's bins are neighbours
            return jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0)

        grads, metrics = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, model), jax.tree.map(parts, batch))
        return grads, {name: (jnp.max if name in LARGEST else jnp.sum)(values) for name, values in metrics.items()}

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        with on_mesh(mesh):
            grads, metrics = gradient(state.model, batch)
        params: Any = state.model  # optax takes any pytree
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        model: Any = optax.apply_updates(params, updates)
        metrics |= {"grad_norm": optax.global_norm(grads)}
        if grpo is not None:  # (sum w)^2 / (n sum w^2)
            metrics["effective_sample_size"] = metrics["ratio_mean"] ** 2 / jnp.maximum(metrics.pop("ratio_square"), 1e-30)
        return TrainState(state.step + 1, model, opt_state), metrics

    return train_step
