"""Losses and their gradients against TRL's `GRPOTrainer._compute_loss`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.kit.grpo import CONFIGS, EMPTY, NAMED, Arrays, B, S, case, importance_weights, trl
from vitar_jax.errors import ConfigError
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_loss import clamp, grpo_loss, kl_estimate, sampler_gap
from vitar_jax.learning.objective import count_batch

V = 17


def ours(arrays: Arrays, config: GRPO) -> tuple[jax.Array, jax.Array]:
    rest = {name: jnp.asarray(values) for name, values in arrays.items() if name not in ("logprobs", "entropies")}
    given = jnp.stack([jnp.asarray(arrays[name]) for name in ("logprobs", "entropies")])
    return jax.value_and_grad(lambda x: grpo_loss(x[0], entropies=x[1], **rest, config=config)[0])(given)


def verl(arrays: Arrays, config: GRPO) -> tuple[float, np.ndarray]:
    """The loss of verl's `vanilla`, `gspo` and `cispo` in fp64, and its gradient to log-probabilities, one sequence per row."""
    logprobs = torch.tensor(arrays["logprobs"], requires_grad=True)
    old, advantages, mask = (torch.tensor(arrays[name]) for name in ("old_logprobs", "advantages", "loss_mask"))
    log_ratio = torch.clamp(logprobs - old, -20, 20)
    if config.ratio == "sequence":
        means = ((logprobs - old) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = torch.clamp(logprobs - logprobs.detach() + means.detach(), max=10.0)
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
    if config.surrogate == "cispo":
        losses = -clipped.detach() * advantages * logprobs
    else:
        losses = torch.maximum(-advantages * ratio, -advantages * clipped)
    if config.mean == "tokens":
        loss = (losses * mask).sum() / mask.sum()
    else:
        loss = ((losses * mask).sum(-1) / mask.sum(-1).clamp(min=1)).sum() / (B if config.count_empty else B - 1)
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vitar", "cispo", "on the bounds", "gspo"])
def test_far_ratios_are_clamped_as_verl_does(name: str) -> None:
    arrays, config = case(spread=30.0), CONFIGS[name]
    assert np.sum(np.abs(arrays["logprobs"] - arrays["old_logprobs"])[arrays["loss_mask"]] > 20) > 10
    expected_loss, expected_grad = verl(arrays, config)
    with jax.enable_x64(True):
        loss, grad = ours(arrays, config)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-9)
    np.testing.assert_allclose(grad[0], expected_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("distance", [-300.0, 300.0])
def test_one_token_never_makes_a_step_infinite(name: str, distance: float) -> None:
    """In fp32, with the sum of squared gradients, from which the step decides whether it is skipped."""
    arrays, config = case(), CONFIGS[name]
    row, token = np.argwhere(arrays["loss_mask"] & (arrays["advantages"] < 0))[0]
    arrays["loss_mask"][row] = np.arange(S) == token  # the only token of its sequence
    arrays["old_logprobs"][row, token] = arrays["logprobs"][row, token] - distance
    arrays["reference_logprobs"][row, token] = arrays["logprobs"][row, token] - distance
    loss, grad = ours(arrays, config)
    assert np.isfinite(loss) and np.isfinite(jnp.sum(grad**2))
    rest = {name: jnp.asarray(values) for name, values in arrays.items()}
    assert all(np.isfinite(value) for value in grpo_loss(**rest, config=config)[1].values())
    gap = sampler_gap(*(jnp.asarray(arrays[name]) for name in ("logprobs", "old_logprobs", "loss_mask")))
    assert all(np.isfinite(value) for value in gap.values()) and gap["logprob_gap_max"] == pytest.approx(300)


@pytest.mark.parametrize("low, high", [(0.8, 1.2), (1.0, 1.0), (-np.inf, 1.2), (0.0, np.inf)])
def test_a_clamp_has_torchs_gradient_on_its_bounds(low: float, high: float) -> None:
    x = np.array([0.0, 0.8, 1.0, 1.1, 1.2, 5.0, -3.0])
    theirs = torch.tensor(x, requires_grad=True)
    torch.clamp(theirs, low, high).sum().backward()
    assert theirs.grad is not None
    with jax.enable_x64(True):
        value, slope = jax.vmap(jax.value_and_grad(lambda x: clamp(x, low, high)))(jnp.asarray(x))
    assert np.array_equal(value, np.clip(x, low, high)) and np.array_equal(slope, theirs.grad)


def packed(arrays: Arrays, a_row: int = 3) -> Arrays:
    """The same sequences, several in a row."""
    segments = np.repeat(np.arange(B) % a_row + 1, S).astype(np.int32)
    arrays = arrays | {"segment_ids": segments.reshape(B, S)}
    return {name: values.reshape(B // a_row, a_row * S) for name, values in arrays.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed, spread", enumerate([0.0, 0.01, 0.3, 4.0]))
def test_every_objective_equals_trl_however_it_is_packed(name: str, spread: float, seed: int) -> None:
    arrays, config = case(seed, spread), CONFIGS[name]
    assert max(np.abs(arrays["logprobs"] - arrays[of]).max() for of in ("old_logprobs", "reference_logprobs")) < 20
    expected_loss, expected_grad = trl(arrays, config)
    assert np.linalg.norm(expected_grad) > (1e-9 if config.surrogate == "vespo" else 1e-3)  # its weights vanish far away
    with jax.enable_x64(True):
        for layout in (arrays, packed(arrays)):
            loss, grad = ours(layout, config)
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-9, atol=1e-9)
            distance = np.linalg.norm(grad.reshape(expected_grad.shape) - expected_grad)
            assert distance <= 1e-9 * np.linalg.norm(expected_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_is_enough(name: str) -> None:
    arrays, config = case(), CONFIGS[name]
    loss, grad = ours(arrays, config)
    expected_loss, expected_grad = trl(arrays, config)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)


def test_configs_differ() -> None:
    """What a knob does shows in the case."""
    losses = {name: trl(case(), config)[0] for name, config in CONFIGS.items()}
    assert len({round(loss, 6) for loss in losses.values()}) == len(CONFIGS), losses


def test_the_case_has_clipped_ratios_of_all_four_kinds() -> None:
    arrays = case()
    ratio = np.exp(arrays["logprobs"] - arrays["old_logprobs"])[arrays["loss_mask"]]
    positive = (arrays["advantages"] > 0)[arrays["loss_mask"]]
    for above in (True, False):
        for sign in (True, False):
            assert np.any((ratio > 1.2 if above else ratio < 0.8) & (positive == sign))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_sequence_without_policy_tokens_counts_only_where_it_is_to(name: str) -> None:
    arrays, config = case(), NAMED[name]
    without = {key: np.delete(values, EMPTY, axis=0) for key, values in arrays.items()}
    assert config.count_empty == (config.mean != "tokens")
    uncounted = dataclasses.replace(config, count_empty=False)
    assert float(ours(without, uncounted)[0]) == pytest.approx(float(ours(arrays, uncounted)[0]), rel=1e-6)
    share = (B - 1) / B if config.count_empty else 1
    assert float(ours(arrays, config)[0]) == pytest.approx(float(ours(without, config)[0]) * share, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_no_split_changes_loss_gradient_or_metrics(name: str, micro_batches: int) -> None:
    arrays, config = packed(case()), CONFIGS[name]

    def loss_and_gradient(part: Arrays, counts: Any) -> Any:
        inputs = {key: jnp.asarray(values) for key, values in part.items() if key != "logprobs"}
        loss_fn = lambda logprobs: grpo_loss(logprobs, **inputs, config=config, counts=counts)  # noqa: E731
        return jax.grad(loss_fn, has_aux=True)(jnp.asarray(part["logprobs"]))

    with jax.enable_x64(True):
        expected_grad, expected = loss_and_gradient(arrays, None)
        counts = count_batch(jnp.asarray(arrays["loss_mask"]), jnp.asarray(arrays["segment_ids"]), empty=config.count_empty)
        cut = [{key: np.split(values, micro_batches)[i] for key, values in arrays.items()} for i in range(micro_batches)]
        assert len({int(part["loss_mask"].sum()) for part in cut}) > 1
        grads, metrics = zip(*(loss_and_gradient(part, counts) for part in cut), strict=True)
        np.testing.assert_allclose(np.concatenate(grads), expected_grad, rtol=1e-9)
    for key, value in expected.items():
        values = [float(m[key]) for m in metrics]
        assert (max(values) if key.endswith("_max") else sum(values)) == pytest.approx(float(value), rel=1e-6), key


@pytest.mark.slow
@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_estimates_of_the_divergence(kind: Any, clamped: bool) -> None:
    d = np.array([-90.0, -21.0, -20.0, -19.0, -10.0, -4.0, -0.1, 0.0, 0.1, 2.0, 4.0, 10.0, 19.0, 20.0, 21.0, 90.0])
    value = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[kind]
    slope = {"k1": -np.ones_like(d), "k2": d, "k3": np.exp(d) - 1}[kind]
    config = GRPO(kl=kind, kl_coefficient=1.0, kl_clamp=clamped)
    with jax.enable_x64(True):
        ours, gradient = jax.vmap(jax.value_and_grad(lambda d: kl_estimate(d, config)))(jnp.asarray(d))
    if clamped:
        slope = np.where((abs(d) <= 20) & (abs(value) <= 10), slope, 0)
        value = np.clip(value, -10, 10)
    elif kind == "k3":
        far, bounded = abs(d) > 20, np.clip(d, -20, 20)
        slope, value = np.where(far, 0, slope), np.where(far, np.exp(bounded) - bounded - 1, value)
    np.testing.assert_allclose(ours, value, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9)


def test_a_clamp_leaves_no_gradient_where_fp32_overflows() -> None:
    config = GRPO(kl_coefficient=1.0, kl_clamp=True)
    value, slope = jax.value_and_grad(lambda d: kl_estimate(d, config))(jnp.float32(200))
    assert float(value) == 10 and float(slope) == 0  # without the first clamp: 0 times infinity


def test_an_estimate_is_that_of_the_divergence() -> None:
    """Over all tokens, weighted by the policy: k1 and k3 are exact, k2 nearly so for policies that are close."""
    rng = np.random.default_rng(0)
    policy, reference = (np.exp(x) / np.exp(x).sum() for x in 0.05 * rng.normal(size=(2, V)))
    d = np.log(reference) - np.log(policy)
    for kind in ("k1", "k2", "k3"):
        config = GRPO(kl=kind, kl_coefficient=1.0)
        divergence = float(np.sum(policy * np.asarray(kl_estimate(jnp.asarray(d), config))))
        assert divergence == pytest.approx(-np.sum(policy * d), rel=0.1 if kind == "k2" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_what_stands_under_no_mask_changes_nothing(name: str) -> None:
    arrays = case()
    loss, grad = ours(arrays, CONFIGS[name])
    rng = np.random.default_rng(1)
    wild = {"logprobs": 1e4, "old_logprobs": -1e4, "advantages": 1e9, "reference_logprobs": 1e5, "entropies": 1e9}
    wild["sampler_logprobs"] = -1e6
    for key, value in wild.items():
        arrays[key] = np.where(arrays["loss_mask"], arrays[key], value * rng.random((B, S)))
    other_loss, other_grad = ours(arrays, CONFIGS[name])
    assert float(loss) == float(other_loss)
    assert np.array_equal(grad, other_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_without_policy_tokens_is_zero(name: str) -> None:
    arrays = case() | {"loss_mask": np.zeros((B, S), bool)}
    loss, grad = ours(arrays, CONFIGS[name])
    assert float(loss) == 0 and not np.any(grad)


def test_metrics_are_over_policy_tokens() -> None:
    arrays = case()
    config = GRPO(kl_coefficient=0.1, old_logprobs="trainer", correction="token_mask", correction_high=1.3)
    _, metrics = grpo_loss(**{k: jnp.asarray(v) for k, v in arrays.items()}, config=config)
    ratio = np.exp(arrays["logprobs"] - arrays["old_logprobs"])[arrays["loss_mask"]]
    np.testing.assert_allclose(metrics["clip_fraction"], np.mean((ratio < 0.8) | (ratio > 1.2)), rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio_max"], ratio.max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["approx_kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-4)
    d = (arrays["reference_logprobs"] - arrays["logprobs"])[arrays["loss_mask"]]
    np.testing.assert_allclose(metrics["kl"], np.mean(np.exp(d) - d - 1), rtol=1e-5)
    weights = importance_weights(arrays, config)[arrays["loss_mask"]]
    np.testing.assert_allclose(metrics["correction"], np.mean(weights), rtol=1e-5)
    assert np.any(weights == 0) and np.any(weights > 0)


@pytest.mark.parametrize(
    "knobs",
    [
        dict(clip_low=-0.1),
        dict(clip_low=1.1),
        dict(clip_high=-0.1),
        dict(dual_clip=1.2),
        dict(surrogate="cispo", dual_clip=3.0),
        dict(surrogate="sapo", dual_clip=3.0),
        dict(sapo_temperatures=(1.0, 0.0)),
        dict(vespo_positive=(-1.0, 2.0)),
        dict(surrogate="vespo", ratio="sequence"),
        dict(surrogate="gpg", ratio="sequence"),
        dict(surrogate="vespo", old_logprobs="trainer", correction="token_mask"),
        dict(mean="horizon"),
        dict(horizon=5),
        dict(count_empty=True),
        dict(kl_coefficient=-1.0),
        dict(kl_clamp=True),
        dict(kl_corrected=True),
        dict(correction="token_mask"),
        dict(correction_high=2.0, correction_low=2.0),
        dict(epochs=0),
        dict(refills=-1),
        dict(overlong_penalty=-1.0),
        dict(overlong_penalty=1.0, overlong_end=5, overlong_start=5),
        dict(overlong_end=5),
        dict(minibatches=0),
        dict(epsilon=-1.0),
        dict(scale_advantages=False, batch_std=True),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"objective.*{list(knobs)[-1]}"):
        GRPO(**knobs)


def test_the_gap_to_the_sampler_is_over_policy_tokens() -> None:
    arrays = case()
    mask = arrays["loss_mask"]
    metrics = sampler_gap(*(jnp.asarray(arrays[name]) for name in ("logprobs", "old_logprobs", "loss_mask")))
    gap = (arrays["logprobs"] - arrays["old_logprobs"])[mask]
    expected = [np.abs(gap).mean(), np.abs(gap).max(), np.exp(gap).mean(), np.exp(2 * gap).mean()]
    np.testing.assert_allclose(list(metrics.values()), expected, rtol=1e-5)
