"""AdamW, or Adafactor with momentum, with a learning-rate schedule and global-norm clipping."""

import dataclasses
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Attributes:
      schedule: Decay of the learning rate after `warmup_steps` of linear warm-up: none, or a cosine or linear decay to
        `final_fraction` of the rate.
      weight_decay: Weight decay of matrices, including adapters. Norms, biases and the embedding table have none.
      clip_norm: Largest global norm of a gradient.
      first_moment: Type of the gradients' mean.
      second_moment: Full mean of the squared gradients in fp32 (AdamW), or "factored" into rows and columns, which takes
        almost no memory. "factored" is Adafactor with momentum, as in Zhai et al. (2022, arXiv 2106.04560, section 3.4).
        Gradients are divided by the root of the factored mean, whose decay depends on the step instead of `beta2` and
        `epsilon`. Then they are clipped to a root-mean-square of 1 per parameter and averaged with `beta1`. A full mean in
        bf16 would not change: with a decay of 0.999, its updates are below half a unit in the last place.
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
    """Returns the learning rate as a function of the optimizer step."""
    rate, decay_steps = config.learning_rate, max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "cosine": optax.cosine_decay_schedule(rate, decay_steps, alpha=config.final_fraction),
        "linear": optax.linear_schedule(rate, rate * config.final_fraction, decay_steps),
    }[config.schedule]
    # Warm-up counts from 1, so that the rate of the first step is not 0.
    warmup = optax.linear_schedule(config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer for a run of `steps` optimizer steps."""
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
