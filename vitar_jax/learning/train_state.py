"""What training carries from step to step."""

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
    trainable: Trainable = Trainable(),
) -> TrainState:
    """Makes the state in its sharding; no device ever holds more than its part."""
    _, spread = abstract_train_state(make_model, optimizer, mesh, rules, trainable)
    return jax.jit(lambda: first_state(make_model(), optimizer, trainable), out_shardings=spread)()


def abstract_train_state(
    make_model: Callable[[], VisionLanguageModel],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    trainable: Trainable = Trainable(),
) -> tuple[Any, Any]:
    """Shapes of the state, and its shardings; the model that is made may be abstract too."""
    abstract = jax.eval_shape(lambda model: first_state(model, optimizer, trainable), jax.eval_shape(make_model))
    return abstract, shardings(abstract, mesh, rules)


def first_state(model: Any, optimizer: optax.GradientTransformation, trainable: Trainable = Trainable()) -> TrainState:
    """The state at step 0, where the model lies."""
    model = trainable.prepare(model)
    opt_state = optimizer.init(trainable.split(model)[0])  # to optax, a model is any pytree
    return TrainState(jnp.int32(0), model, opt_state, jnp.int32(0), jnp.int32(0))


def restart(
    model: VisionLanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: ShardingRules,
    trainable: Trainable = Trainable(),
) -> TrainState:
    """A state at step 0 around weights that exist."""
    _, spread = abstract_train_state(lambda: model, optimizer, mesh, rules, trainable)
    return jax.jit(lambda model: first_state(model, optimizer, trainable), out_shardings=spread)(model)


def reference_weights(model: VisionLanguageModel) -> VisionLanguageModel:
    """A copy that stays as it is while the model learns, adapters merged, in the type that the model computes in."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf).astype(model.config.dtype), merge_lora(model))
