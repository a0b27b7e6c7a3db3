"""A case of GRPO's loss, the configs to try on it, and TRL's `GRPOTrainer._compute_loss` as an oracle."""

import dataclasses
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_loss import PRESETS

B, S = 12, 10
EMPTY = 2  # a row without a policy token
Arrays = dict[str, np.ndarray]


def case(seed: int = 0, spread: float = 0.3) -> Arrays:
    """Log-probabilities before and after an update; `spread` is the standard deviation of the log ratio."""
    rng = np.random.default_rng(seed)
    old_logprobs = -rng.gamma(1.0, 1.0, (B, S))
    arrays = {
        "logprobs": old_logprobs + spread * rng.normal(size=(B, S)),
        "old_logprobs": old_logprobs,
        "advantages": np.repeat(rng.normal(size=(B, 1)), S, axis=1),
        "loss_mask": rng.random((B, S)) < 0.6,
        "segment_ids": np.ones((B, S), np.int32),
        "entropies": rng.gamma(1.0, 1.0, (B, S)),
        "reference_logprobs": old_logprobs + spread * rng.normal(size=(B, S)),
        "sampler_logprobs": old_logprobs + min(spread, 0.3) * rng.normal(size=(B, S)),
    }
    arrays["loss_mask"][EMPTY] = False
    return arrays


def importance_weights(arrays: Arrays, config: GRPO) -> np.ndarray:
    """TRL takes these as an input: truncated or masked weights of tokens or of sequences, one sequence a row."""
    log_weights = np.where(arrays["loss_mask"], arrays["old_logprobs"] - arrays["sampler_logprobs"], 0)
    level, kind = config.correction.split("_")
    weights = np.exp(log_weights if level == "token" else log_weights.sum(axis=1, keepdims=True))
    low, high = config.correction_low, config.correction_high
    return weights.clip(low, high) if kind == "truncate" else np.where((weights < low) | (weights > high), 0, weights)


def trl(arrays: Arrays, config: GRPO) -> tuple[float, np.ndarray]:
    """TRL's loss in fp64, and its gradients to log-probabilities and entropies."""
    logprobs, entropies = (torch.tensor(arrays[k], requires_grad=True) for k in ("logprobs", "entropies"))
    cispo, gpg = config.surrogate == "cispo", config.surrogate == "gpg"
    by_horizon = "luspo" if config.horizon == 1 else "dr_grpo"
    by_mean = {"tokens": "bnpo", "sequences": "grpo", "horizon": by_horizon}
    loss_type = by_mean[config.mean] if config.surrogate == "clip" else "cispo" if gpg else config.surrogate
    trainer: Any = object.__new__(GRPOTrainer)
    vars(trainer).update(
        loss_type=loss_type,
        max_completion_length=config.horizon,
        beta=config.kl_coefficient,
        epsilon_low=config.clip_low,
        epsilon_high=np.inf if gpg else config.clip_high + cispo,  # there it is the cap itself
        importance_sampling_level=config.ratio,
        top_entropy_quantile=config.entropy_share,
        off_policy_mask_threshold=None,
        use_vllm=config.correction != "none",
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=config.dual_clip or None,
            use_bias_correction_kl=config.kl_corrected,
            steps_per_generation=1,
            **dict(zip(("sapo_temperature_pos", "sapo_temperature_neg"), config.sapo_temperatures, strict=True)),
            **dict(zip(("vespo_k_pos", "vespo_lambda_pos"), config.vespo_positive, strict=True)),
            **dict(zip(("vespo_k_neg", "vespo_lambda_neg"), config.vespo_negative, strict=True)),
        ),
        accelerator=SimpleNamespace(
            pad_across_processes=lambda x, **_: x,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
            num_processes=1,
            sync_gradients=False,
        ),
        _entropy_bonus_enabled=config.entropy_coefficient != 0,
        use_adaptive_entropy=False,
        entropy_coef=config.entropy_coefficient,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropies, None),
    )
    mask = torch.tensor(arrays["loss_mask"]).long()
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": torch.ones_like(mask),
        "tool_mask": mask,
        "advantages": torch.tensor(arrays["advantages"][:, 0]),
        # Without old ones the ratio is 1, and cispo is gpg, which TRL does not have.
        "old_per_token_logps": None if gpg else torch.tensor(arrays["old_logprobs"]),
        "ref_per_token_logps": torch.tensor(arrays["reference_logprobs"]),
        "num_items_in_batch": mask.sum(),
    }
    if config.correction != "none":
        inputs["importance_sampling_ratio"] = torch.tensor(importance_weights(arrays, config))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of constants such as 1.05
    try:
        loss = trainer._compute_loss(trainer.model, inputs)
    finally:
        torch.set_default_dtype(default)
    loss.backward()
    return loss.item(), np.stack([np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in (logprobs, entropies)])


HORIZON: dict[str, Any] = {"horizon": 64}
NAMED = {name: GRPO(**knobs, **(HORIZON if name == "dr_grpo" else {})) for name, knobs in PRESETS.items()}
NAMED = {name: config for name, config in NAMED.items() if config.covariance == "none"}  # TRL has no covariance
CONFIGS = NAMED | {
    "vitar": GRPO(),
    "narrow": GRPO(clip_low=0.1, clip_high=0.28),
    "dual clip": GRPO(dual_clip=1.5),
    "sequence ratio": GRPO(ratio="sequence", dual_clip=1.5),
    "kl": GRPO(kl_coefficient=0.1),
    "corrected kl": GRPO(kl_coefficient=0.1, kl_corrected=True),
    "corrected kl of sequences": GRPO(ratio="sequence", kl_coefficient=0.1, kl_corrected=True),
    "cispo of sequences": GRPO(**PRESETS["cispo"], ratio="sequence", kl_coefficient=0.1),
    **{
        kind: GRPO(old_logprobs="trainer", correction=kind, correction_low=0.8, correction_high=1.3, kl_coefficient=0.1)
        for kind in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
    "entropy": dataclasses.replace(NAMED["grpo"], entropy_coefficient=0.01),
    "on the bounds": GRPO(clip_low=0.0, clip_high=0.0),
    "soft clipping": GRPO(**PRESETS["sapo"] | {"sapo_temperatures": (2.0, 0.5), "kl_coefficient": 0.1}),
    "gamma weights": GRPO(surrogate="vespo", vespo_positive=(1.0, 0.5), vespo_negative=(0.5, 1.0), kl_coefficient=0.1),
    "gpg": GRPO(surrogate="gpg", kl_coefficient=0.1),
}
