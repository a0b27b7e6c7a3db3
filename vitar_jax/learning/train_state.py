"""The state that training carries from step to step."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from vitar_jax.learning.objective import Metrics
from vitar_jax.learning.trainable import Trainable
from vitar_jax.models.lora import merge_lora
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.parallel.mesh import ShardingRules, shardings
from vitar_jax.processing.packing import Batch

TrainStep = Callable[["TrainState", Batch], tuple["TrainState", Metrics]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "model", "opt_state", "skipped", "skipped_in_a_row"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step counter, weights (fp32; frozen weights may have another type) and optimizer state.

    Attributes:
      step: Number of steps, with or without an update.
      skipped: Number of steps without an update because loss or gradient was not finite.
      skipped_in_a_row: Number of skipped steps since the last update.
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
    trainable: Trainable = Trainable(),
) -> TrainState:
    """Creates the state in its sharding, so that no device ever holds more than its shard."""
    _, spread = abstract_train_state(make_model, optimizer, mesh, rules, trainable)
    return jax.jit(lambda: first_state(make_model(), optimizer, trainable), out_shardings=spread)()


def abstract_train_state(
    make_model: Callable[[], VisionLanguageModel],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    trainable: Trainable = Trainable(),
) -> tuple[Any, Any]:
    """Returns the abstract state and its shardings. `make_model` may return an abstract model."""
    abstract = jax.eval_shape(lambda model: first_state(model, optimizer, trainable), jax.eval_shape(make_model))
    return abstract, shardings(abstract, mesh, rules)


def first_state(model: Any, optimizer: optax.GradientTransformation, trainable: Trainable = Trainable()) -> TrainState:
    """Returns the state at step 0, in the model's sharding."""
    model = trainable.prepare(model)
    opt_state = optimizer.init(trainable.split(model)[0])  # optax treats a model as a pytree
    return TrainState(jnp.int32(0), model, opt_state, jnp.int32(0), jnp.int32(0))


def restart(
    model: VisionLanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    trainable: Trainable = Trainable(),
) -> TrainState:
    """Returns a state at step 0 with the given weights."""
    _, spread = abstract_train_state(lambda: model, optimizer, mesh, rules, trainable)
    return jax.jit(lambda model: first_state(model, optimizer, trainable), out_shardings=spread)(model)


def reference_weights(model: VisionLanguageModel) -> VisionLanguageModel:
    """Copies the weights, with merged adapters, in the model's type of computation. Training does not change the copy."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf).astype(model.config.dtype), merge_lora(model))
