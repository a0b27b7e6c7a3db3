"""Losses and their gradients against TRL's `GRPOTrainer._compute_loss` and torch's cross entropy."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from vitar_jax.learning.objectives import GRPOConfig, grpo_loss, masked_mean, sampler_gap, sft_loss

B, S, V = 12, 10, 17
Arrays = dict[str, np.ndarray]


def case(seed: int = 0, spread: float = 0.3) -> Arrays:
    """Log-probabilities before and after an update; `spread` is the standard deviation of the log ratio."""
    rng = np.random.default_rng(seed)
    old_logprobs = -rng.gamma(1.0, 1.0, (B, S))
    return {
        "logprobs": old_logprobs + spread * rng.normal(size=(B, S)),
        "old_logprobs": old_logprobs,
        "advantages": np.repeat(rng.normal(size=(B, 1)), S, axis=1),
        "loss_mask": rng.random((B, S)) < 0.6,
    }


def trl(arrays: Arrays, config: GRPOConfig) -> tuple[float, np.ndarray]:
    """TRL's token mean ("bnpo") in fp64: its loss, and the gradient to the log-probabilities."""
    logprobs = torch.tensor(arrays["logprobs"], dtype=torch.float64, requires_grad=True)
    trainer: Any = object.__new__(GRPOTrainer)
    vars(trainer).update(
        loss_type="bnpo",
        beta=0.0,
        epsilon_low=config.clip_low,
        epsilon_high=config.clip_high,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )
    mask = torch.tensor(arrays["loss_mask"]).long()
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": torch.ones_like(mask),
        "tool_mask": mask,
        "advantages": torch.tensor(arrays["advantages"][:, 0]),
        "old_per_token_logps": torch.tensor(arrays["old_logprobs"]),
    }
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.numpy()


def ours(arrays: Arrays, config: GRPOConfig) -> tuple[jax.Array, jax.Array]:
    rest = {name: jnp.asarray(values) for name, values in arrays.items() if name != "logprobs"}
    loss_fn = lambda logprobs: grpo_loss(logprobs, **rest, config=config)[0]  # noqa: E731
    return jax.value_and_grad(loss_fn)(jnp.asarray(arrays["logprobs"]))


@pytest.mark.parametrize("config", [GRPOConfig(), GRPOConfig(clip_low=0.1, clip_high=0.28)])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.3, 8.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_grpo_equals_trl(config: GRPOConfig, spread: float, seed: int) -> None:
    arrays = case(seed, spread)
    loss, grad = ours(arrays, config)
    expected_loss, expected_grad = trl(arrays, config)
    assert np.linalg.norm(expected_grad) > 1e-3
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(grad - expected_grad) <= 1e-4 * np.linalg.norm(expected_grad)


def test_the_case_has_clipped_ratios_of_all_four_kinds() -> None:
    arrays = case()
    ratio = np.exp(arrays["logprobs"] - arrays["old_logprobs"])[arrays["loss_mask"]]
    positive = (arrays["advantages"] > 0)[arrays["loss_mask"]]
    for above in (True, False):
        for sign in (True, False):
            assert np.any((ratio > 1.2 if above else ratio < 0.8) & (positive == sign))


def test_the_clip_is_what_is_tested() -> None:
    arrays = case()
    loss, grad = ours(arrays, GRPOConfig(clip_low=0.9, clip_high=9.0))
    expected_loss, expected_grad = trl(arrays, GRPOConfig())
    assert abs(float(loss) - expected_loss) > 1e-2
    assert np.linalg.norm(grad - expected_grad) > 1e-2 * np.linalg.norm(expected_grad)


def test_a_row_without_policy_tokens_counts_for_nothing() -> None:
    arrays = case()
    arrays["loss_mask"][2] = False
    loss, grad = ours(arrays, GRPOConfig())
    expected_loss, expected_grad = trl(arrays, GRPOConfig())
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-6)
    without = {name: np.delete(values, 2, axis=0) for name, values in arrays.items()}
    np.testing.assert_allclose(ours(without, GRPOConfig())[0], loss, rtol=1e-6)


def test_what_stands_under_no_mask_changes_nothing() -> None:
    arrays = case()
    loss, grad = ours(arrays, GRPOConfig())
    rng = np.random.default_rng(1)
    for name, value in (("logprobs", 1e4), ("old_logprobs", -1e4), ("advantages", 1e9)):
        arrays[name] = np.where(arrays["loss_mask"], arrays[name], value * rng.random((B, S)))
    other_loss, other_grad = ours(arrays, GRPOConfig())
    assert float(loss) == float(other_loss)
    assert np.array_equal(grad, other_grad)


def test_a_batch_without_policy_tokens_is_zero() -> None:
    arrays = case() | {"loss_mask": np.zeros((B, S), bool)}
    loss, grad = ours(arrays, GRPOConfig())
    assert float(loss) == 0 and not np.any(grad)


def test_metrics_are_over_policy_tokens() -> None:
    arrays = case()
    _, metrics = grpo_loss(**{k: jnp.asarray(v) for k, v in arrays.items()}, config=GRPOConfig())
    ratio = np.exp(arrays["logprobs"] - arrays["old_logprobs"])[arrays["loss_mask"]]
    np.testing.assert_allclose(metrics["clip_fraction"], np.mean((ratio < 0.8) | (ratio > 1.2)), rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio_max"], ratio.max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["approx_kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-4)


def test_the_gap_to_the_sampler_is_over_policy_tokens() -> None:
    arrays = case()
    mask = arrays["loss_mask"]
    metrics = sampler_gap(*(jnp.asarray(arrays[name]) for name in ("logprobs", "old_logprobs", "loss_mask")))
    gap = (arrays["logprobs"] - arrays["old_logprobs"])[mask]
    expected = [np.abs(gap).mean(), np.abs(gap).max(), np.exp(gap).mean(), np.exp(2 * gap).mean()]
    np.testing.assert_allclose(list(metrics.values()), expected, rtol=1e-5)


def test_sft_equals_torchs_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(B, S, V)), rng.integers(V, size=(B, S))
    mask = case()["loss_mask"]

    def loss_fn(logits: jax.Array) -> jax.Array:
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return sft_loss(logprobs, jnp.asarray(mask))[0]

    loss, grad = jax.value_and_grad(loss_fn)(jnp.asarray(logits))
    theirs = torch.tensor(logits, requires_grad=True)
    labels = torch.tensor(np.where(mask, targets, -100)).flatten()
    expected = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), labels, ignore_index=-100)
    expected.backward()
    assert theirs.grad is not None
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, theirs.grad, atol=1e-6)


def test_a_masked_mean_ignores_what_is_not_finite() -> None:
    values, mask = jnp.array([1.0, jnp.inf, 3.0, jnp.nan]), jnp.array([True, False, True, False])
    assert float(masked_mean(values, mask)) == 2
