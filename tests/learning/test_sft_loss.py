"""The loss of supervised fine-tuning against torch's cross entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vitar_jax.learning.objective import masked_mean
from vitar_jax.learning.sft import sft_loss


def test_sft_equals_torchs_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(12, 10, 17)), rng.integers(17, size=(12, 10))
    mask = rng.random((12, 10)) < 0.6
    mask[2] = False  # a row without a target

    def loss_fn(logits: jax.Array) -> jax.Array:
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return sft_loss(logprobs, jnp.asarray(mask))

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
