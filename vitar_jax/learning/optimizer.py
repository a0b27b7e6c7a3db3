"""AdamW, or Adafactor with momentum, with a schedule and a global-norm clip, from config."""

import dataclasses
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule, in numbers.

    Attributes:
      schedule: after `warmup_steps` of linear rise, constant, or a cosine or a line down to `final_fraction` of the rate.
      weight_decay: on matrices only, those of adapters too, never on norms, biases or the embedding table.
      clip_norm: largest global norm of a gradient.
      first_moment: type that the mean of gradients is kept in.
      second_moment: that of their squares: whole in fp32 (AdamW), or "factored" into rows and columns, which takes next to no
        memory. The latter is Adafactor with momentum, as Zhai et al. (2022, arXiv 2106.04560, section 3.4) train with:
        gradients are divided by the root of the factored mean, whose decay follows from the step and not from `beta2` and
        `epsilon`, clipped to a root-mean-square of 1 a parameter, and averaged by `beta1`. In bf16 a whole one would stand
        still: at a decay of 0.999 its changes are below half a unit in the last place.
    """

    learning_rate: float
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"
    second_moment: Literal["float32", "factored"] = "float32"


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    rate, decay_steps = config.learning_rate, max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "cosine": optax.cosine_decay_schedule(rate, decay_steps, alpha=config.final_fraction),
        "linear": optax.linear_schedule(rate, rate * config.final_fraction, decay_steps),
    }[config.schedule]
    # The first step is not wasted at rate 0: warm-up counts from 1.
    warmup = optax.linear_schedule(config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    if config.second_moment == "factored":
        scaled = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.ema(config.beta1, accumulator_dtype=config.first_moment),
        )
    else:
        scaled = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon, mu_dtype=config.first_moment)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        scaled,
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )


def _decayed(params: Any) -> Any:
    def is_matrix(path: Any, _: Any) -> bool:
        return any(name in jax.tree_util.keystr(path) for name in ("kernel", "lora"))

    return jax.tree_util.tree_map_with_path(is_matrix, params)
