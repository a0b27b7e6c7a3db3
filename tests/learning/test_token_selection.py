"""High entropies, Clip-Cov and KL-Cov: which tokens are selected, and losses and gradients against TRL's and verl's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.kit.grpo import Arrays, B, S, case, trl
from vitar_jax.errors import ConfigError
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_loss import PRESETS, GRPOLossConfig, grpo_loss
from vitar_jax.learning.objective import TokenScores, count_batch
from vitar_jax.learning.token_selection import draws_of, select_tokens, uncertain_tokens
from vitar_jax.parallel.mesh import make_mesh, put_batch
from vitar_jax.processing.packing import Batch

CLIP = GRPO(**PRESETS["clip_cov"], covariance_share=0.1, covariance_low=0.3, covariance_high=2.0)
KL = GRPO(**PRESETS["kl_cov"], covariance_share=0.1, covariance_kl=0.7)


def draws(arrays: Arrays) -> jax.Array:
    numbers = jnp.arange(B * S).reshape(B, S)
    return draws_of(numbers % 7, numbers % 5, jnp.asarray(arrays["old_logprobs"]))


def selected(arrays: Arrays, config: GRPOLossConfig) -> np.ndarray:
    old, advantages, mask = (jnp.asarray(arrays[name]) for name in ("old_logprobs", "advantages", "loss_mask"))
    return np.asarray(select_tokens(old, advantages, mask, config, draws(arrays)))


def covariances(arrays: Arrays) -> np.ndarray:
    """Of the policy tokens, by hand; minus infinity elsewhere."""
    mask = arrays["loss_mask"]
    advantages, logprobs = (arrays[name] - arrays[name][mask].mean() for name in ("advantages", "old_logprobs"))
    return np.where(mask, advantages * logprobs, -np.inf)


@pytest.mark.parametrize("share, count", [(0.1, None), (2e-4, 1), (1.0, None)])
def test_kl_cov_takes_the_largest_covariances(share: float, count: int | None) -> None:
    arrays = case()
    tokens = int(arrays["loss_mask"].sum())
    found = selected(arrays, dataclasses.replace(KL, covariance_share=share))
    assert found.sum() == (count or int(share * tokens))
    expected = np.argsort(covariances(arrays), axis=None)[::-1][: found.sum()]
    assert set(np.flatnonzero(found)) == set(expected)


def test_clip_cov_draws_within_the_bounds() -> None:
    """Another draw for other log-probabilities, the same wherever a token lies in the batch, and all tokens in the end."""
    arrays = case()
    within = (covariances(arrays) > 0.3) & (covariances(arrays) < 2.0)
    found = selected(arrays, CLIP)
    assert found.sum() == int(0.1 * arrays["loss_mask"].sum()) < within.sum() and within[found].all()
    everything = dataclasses.replace(CLIP, covariance_share=1.0)
    np.testing.assert_array_equal(selected(arrays, everything), within)
    none = dataclasses.replace(CLIP, covariance_low=500.0, covariance_high=501.0)
    assert not selected(arrays, none).any()
    order = np.random.default_rng(1).permutation(B)
    names = ("old_logprobs", "advantages", "loss_mask")
    old, advantages, mask = (jnp.asarray(arrays[name][order]).reshape(2, B // 2, S) for name in names)
    again = select_tokens(old, advantages, mask, CLIP, draws(arrays)[order].reshape(2, B // 2, S))
    np.testing.assert_array_equal(np.asarray(again).reshape(B, S), found[order])


def test_draws_are_uniform() -> None:
    """And unlike, where two tokens differ in anything."""
    logprobs = -np.random.default_rng(0).gamma(1.0, 1.0, 20_000).astype(np.float32)
    numbers = np.asarray(draws_of(jnp.full(20_000, 5), jnp.full(20_000, 9), jnp.asarray(logprobs)))
    counts = np.histogram(numbers, bins=10, range=(0, 2**32))[0]
    assert abs(counts - 2000).max() < 5 * 2000**0.5
    ids, places = jnp.meshgrid(jnp.arange(100), jnp.arange(100))
    assert len(np.unique(draws_of(ids, places, jnp.zeros((100, 100))))) > 9_990


def verl(arrays: Arrays, config: GRPO) -> tuple[float, np.ndarray]:
    """verl's `clip_cov` and `kl_cov` in fp64, given the selected tokens, and the gradient to log-probabilities."""
    logprobs = torch.tensor(arrays["logprobs"], requires_grad=True)
    old, advantages, mask = (torch.tensor(arrays[name]) for name in ("old_logprobs", "advantages", "loss_mask"))
    chosen = torch.tensor(arrays["selected"])
    ratio = torch.exp(logprobs - old)
    if config.covariance == "clip":
        clipped = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
        losses = torch.maximum(-advantages * ratio, -advantages * clipped) * ~chosen
    else:
        losses = -advantages * ratio + config.covariance_kl * (logprobs - old).abs() * chosen
    loss = (losses * mask).sum() / mask.sum()
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("config", [CLIP, KL], ids=["clip", "kl"])
def test_loss_and_gradient_are_verls(config: GRPO) -> None:
    arrays = case()
    arrays["selected"] = selected(arrays, config)
    assert arrays["selected"].sum() > 3
    names = ("old_logprobs", "advantages", "loss_mask", "segment_ids", "selected")
    with jax.enable_x64(True):
        rest: dict[str, Any] = {name: jnp.asarray(arrays[name]) for name in names}
        counts = count_batch(rest["loss_mask"], rest["segment_ids"])

        def loss(logprobs: jax.Array, rows: slice = slice(None)) -> tuple[jax.Array, Any]:
            part = {name: values[rows] for name, values in rest.items()}
            return grpo_loss(logprobs[rows], **part, config=config, counts=counts)

        (found, metrics), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(arrays["logprobs"]))
        parts = sum(loss(jnp.asarray(arrays["logprobs"]), rows)[0] for rows in (slice(0, 5), slice(5, None)))
    expected, expected_grad = verl(arrays, config)
    np.testing.assert_allclose([float(found), float(parts)], expected, rtol=1e-9)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9, atol=1e-12)
    assert metrics["selected"] == pytest.approx(arrays["selected"].sum() / arrays["loss_mask"].sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        GRPO(entropy_share=0.2),
        GRPO(**PRESETS["grpo"], entropy_share=0.5),
        GRPO(old_logprobs="trainer", correction="token_mask", correction_low=0.8, correction_high=1.3, entropy_share=0.35),
        GRPO(**PRESETS["cispo"], kl_coefficient=0.1, entropy_share=0.8),
    ],
)
def test_high_entropies_are_learnt_from_as_in_trl(config: GRPO) -> None:
    arrays = case()
    expected, expected_grads = trl(arrays, config)
    with jax.enable_x64(True):
        names = [name for name in arrays if name not in ("logprobs", "entropies")]
        rest: dict[str, Any] = {name: jnp.asarray(arrays[name]) for name in names}
        rest["uncertain"] = uncertain_tokens(jnp.asarray(arrays["entropies"]), rest["loss_mask"], config.entropy_share)
        given = jnp.asarray(arrays["logprobs"])
        found, grad = jax.value_and_grad(lambda x: grpo_loss(x, **rest, config=config)[0])(given)
    assert 0 < rest["uncertain"].sum() < arrays["loss_mask"].sum()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(grad, expected_grads[0], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CLIP, KL], ids=["clip", "kl"])
def test_a_step_selects_the_same_tokens_on_any_number_of_devices(config: GRPO) -> None:
    """From the trainer's log-probabilities, drawn by the sampler's; the loss reads what `annotate` adds."""
    arrays = {name: jnp.asarray(values[:8, None]) for name, values in case().items()}
    config = dataclasses.replace(config, old_logprobs="trainer")
    tokens, zeros = jnp.arange(8 * S).reshape(8, 1, S), jnp.zeros((8, 1, S), jnp.int32)
    places, extras = jnp.stack([tokens % S] * 3, axis=1), {name: arrays[name] for name in ("advantages",)}
    extras["old_logprobs"] = arrays["sampler_logprobs"]
    batch = Batch(tokens, zeros + 1, arrays["loss_mask"], zeros, places, jnp.zeros((8, 1, 1, 1)), zeros, extras)
    annotated = jax.jit(lambda batch: config.annotate(batch, lambda batch: arrays["old_logprobs"], None))
    alone = annotated(batch)
    found = alone.extras["selected"]
    assert found.sum() == int(0.1 * arrays["loss_mask"].sum()) > 1 and (arrays["loss_mask"][found > 0]).all()
    mesh = make_mesh()
    np.testing.assert_array_equal(annotated(put_batch(batch, mesh)).extras["selected"], found)
    scores = TokenScores(arrays["logprobs"], arrays["entropies"])
    metrics = config.loss(scores, alone, config.counts(alone))[1]
    assert metrics["selected"] == pytest.approx(found.sum() / arrays["loss_mask"].sum())


@pytest.mark.parametrize(
    "keys, words",
    [
        (dict(entropy_share=0.0), "entropy_share: must be in"),
        (dict(entropy_share=0.2, entropy_coefficient=0.1), "entropy_coefficient: must be 0"),
        (dict(covariance="kl", surrogate="cispo"), "covariance: needs surrogate='clip'"),
        (dict(covariance="clip", ratio="sequence"), "covariance: needs surrogate='clip'"),
        (dict(covariance="kl", covariance_share=0.0), "covariance_share"),
        (dict(covariance="clip", covariance_low=5.0), "covariance_low"),
        (dict(covariance="kl", covariance_kl=-1.0), "covariance_kl"),
    ],
)
def test_settings_that_mean_nothing_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GRPO(**keys)
