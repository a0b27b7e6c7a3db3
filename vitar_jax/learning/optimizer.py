"""AdamW with a schedule and a global-norm clip, from config."""

import dataclasses
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule, in numbers.

    Attributes:
      schedule: after `warmup_steps` of linear rise, constant, or cosine down to `final_fraction` of the rate.
      weight_decay: on matrices only, never on norms, biases or the embedding table.
      clip_norm: largest global norm of a gradient.
    """

    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    if config.schedule == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(
            config.learning_rate, max(steps - config.warmup_steps, 1), alpha=config.final_fraction
        )
    # The first step is not wasted at rate 0: warm-up counts from 1.
    warmup = optax.linear_schedule(config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)
