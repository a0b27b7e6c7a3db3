"""The loss of masks at points, against torch and Mask2Former; the choice of points; parts of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import dice_loss, sample_point, sigmoid_cross_entropy_loss

from vitar_jax.errors import ConfigError
from vitar_jax.learning.mask_loss import (
    MaskLossConfig,
    batch_mask_loss,
    choose_points,
    losses_at,
    mask_loss,
    sample_points,
)
from vitar_jax.processing.mask_targets import MaskBatch

CONFIG = MaskLossConfig(points=64)
sample = jax.jit(sample_points)
choose = jax.jit(choose_points, static_argnums=1)
whole = jax.jit(mask_loss, static_argnums=3)
of_batch = jax.jit(batch_mask_loss, static_argnums=2)


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


def case(count: int = 3, height: int = 12, width: int = 20, points: int = 200, seed: int = 0):
    """Logits, targets, and points of which some lie at the borders."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, height, width), scale=3).astype(np.float32)
    targets = rng.random((count, height, width)) < 0.4
    places = rng.random((count, points, 2)).astype(np.float32)
    places[:, :4] = [[0, 0], [1, 1], [0.01, 0.99], [0.5, 0]]
    return logits, targets, places


@pytest.mark.parametrize("height, width", [(12, 20), (1, 5), (16, 16)])
def test_maps_are_sampled_as_by_torch(height: int, width: int) -> None:
    logits, _, places = case(height=height, width=width)
    expected = sample_point(torch.tensor(logits)[:, None], torch.tensor(places), align_corners=False)[:, 0]
    np.testing.assert_allclose(sample(logits, places), expected, rtol=1e-5, atol=1e-5)


def test_points_at_the_border_mix_with_nothing() -> None:
    ones = jnp.ones((1, 4, 4))
    found = sample(ones, jnp.array([[[0.5, 0.5], [0.0, 0.5], [0.0, 0.0], [0.125, 0.125]]]))
    np.testing.assert_allclose(found, [[1, 0.5, 0.25, 1]])


def test_losses_and_gradients_are_mask2formers() -> None:
    logits, targets, places = case()
    count = len(logits)

    def ours(logits: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        cross_entropy, dice = losses_at(logits, jnp.asarray(targets), jnp.asarray(places))
        return 2.0 * cross_entropy.mean() + 0.5 * dice.mean(), (cross_entropy.mean(), dice.mean())

    (loss, (cross_entropy, dice)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(logits)
    theirs = torch.tensor(logits, requires_grad=True)
    predicted = sample_point(theirs[:, None], torch.tensor(places), align_corners=False)[:, 0]
    wanted = sample_point(torch.tensor(targets).float()[:, None], torch.tensor(places), align_corners=False)[:, 0]
    of_points = sigmoid_cross_entropy_loss(predicted, wanted, count), dice_loss(predicted, wanted, count)
    expected = 2.0 * of_points[0] + 0.5 * of_points[1]
    expected.backward()
    for one, other in ((loss, expected), (cross_entropy, of_points[0]), (dice, of_points[1])):
        assert float(one) == pytest.approx(other.item(), rel=1e-6)
    assert theirs.grad is not None
    error = np.linalg.norm(gradient - theirs.grad.numpy()) / np.linalg.norm(theirs.grad.numpy())
    assert error <= 1e-5


def test_large_logits_have_a_finite_loss() -> None:
    logits = jnp.array([[[1e4, -1e4], [-1e4, 1e4]]])
    cross_entropy, dice = jax.jit(losses_at)(logits, logits < 0, jnp.array([[[0.25, 0.25], [0.75, 0.25]]]))
    np.testing.assert_allclose(cross_entropy, 1e4)
    assert 0 < float(dice[0]) < 1


def test_most_points_are_uncertain_and_the_rest_random() -> None:
    """A mask whose logits grow from left to right is uncertain in its middle."""
    config = MaskLossConfig(points=1000)
    logits = jnp.broadcast_to(jnp.linspace(-8.0, 8.0, 64), (2, 64, 64))
    points = choose(logits, config, keys(2))
    assert points.shape == (2, 1000, 2)
    distance = np.abs(np.asarray(points)[..., 0] - 0.5)
    inside = np.abs(np.asarray(points)[..., 1] - 0.5) < 0.49  # further out, the sampled logits shrink
    # 750 of 3,000 candidates: a quarter of the width, so an eighth on both sides.
    assert distance[:, :750][inside[:, :750]].max() == pytest.approx(0.125, abs=0.02)
    assert distance[:, 750:].mean() == pytest.approx(0.25, abs=0.03)
    assert not np.array_equal(points[0], points[1])


def test_no_gradient_flows_through_the_choice() -> None:
    logits = jnp.asarray(case()[0])
    gradient = jax.jit(jax.grad(lambda logits: choose_points(logits, CONFIG, keys(3)).sum()))(logits)
    assert not gradient.any()


@pytest.mark.slow
def test_the_loss_is_the_published_sum() -> None:
    """Divisors are the masks' number, and that times the points', each plus 1e-4."""
    logits, targets, _ = case()
    valid = jnp.ones(3, bool)
    loss, parts = whole(logits, targets, valid, CONFIG, keys(3))
    places = torch.tensor(np.asarray(choose(logits, CONFIG, keys(3))))
    predicted = sample_point(torch.tensor(logits)[:, None], places, align_corners=False)[:, 0]
    wanted = sample_point(torch.tensor(targets).float()[:, None], places, align_corners=False)[:, 0]
    summed = torch.nn.functional.binary_cross_entropy_with_logits(predicted, wanted, reduction="sum")
    expected = 2.0 * summed / (3 * 64 + 1e-4) + 0.5 * dice_loss(predicted, wanted, 1) / (3 + 1e-4)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    assert float(loss) == pytest.approx(2 * float(parts["masks/cross_entropy"]) + 0.5 * float(parts["masks/dice"]))
    overlap, union = ((op(logits > 0, targets)).sum(axis=(1, 2)) for op in (np.logical_and, np.logical_or))
    assert float(parts["masks/iou"]) == pytest.approx(float((overlap / union).mean()), rel=1e-6)


@pytest.mark.slow
def test_places_without_a_mask_add_nothing() -> None:
    logits, targets, _ = (jnp.asarray(each) for each in case(height=16, width=16))

    def loss(valid: list[bool], logits: jax.Array = logits) -> jax.Array:
        return whole(logits, targets, jnp.array(valid), CONFIG, keys(3))[0]

    gradient = jax.grad(lambda logits: loss([True, False, True], logits))(logits)
    assert gradient[0].any() and not gradient[1].any()
    assert float(loss([False] * 3)) == 0
    # Parts of a batch sum to the whole of it.
    parts = [
        whole(logits, targets, jnp.array(valid), CONFIG, keys(3), count=3.0)[0]
        for valid in ([True, False, False], [False, True, True])
    ]
    assert float(sum(parts)) == pytest.approx(float(loss([True] * 3)), rel=1e-6)


def test_the_points_of_a_mask_do_not_depend_on_those_beside_it() -> None:
    logits = jnp.asarray(case()[0])
    whole_batch = choose(logits, CONFIG, keys(3))
    np.testing.assert_array_equal(choose(logits[::-1], CONFIG, keys(3)[::-1])[::-1], whole_batch)


@pytest.mark.slow
def test_a_batch_is_its_masks_in_any_layout() -> None:
    """One bin of two entries, two bins of one, and parts of the batch with its count."""
    rng = np.random.default_rng(0)
    logits, bits = rng.normal(size=(2, 3, 8, 8)).astype(np.float32), rng.random((2, 3, 8, 8)) < 0.4
    positions = np.array([[4, 9, -1], [3, -1, -1]])

    def loss(shape: tuple[int, int], order: list[int], draws: tuple[int, int] = (7, 8)) -> np.ndarray:
        arrays = logits, positions, np.packbits(bits, axis=-1), np.array(draws, np.uint32)
        rows = [each[order].reshape(*shape, *each.shape[1:]) for each in arrays]
        batch = MaskBatch(pixels=None, image=None, row=None, positions=rows[1], targets=rows[2], draws=rows[3])
        total, metrics = of_batch(jnp.asarray(rows[0]), batch, CONFIG, 3)
        return np.array([total, *(metrics[name] for name in sorted(metrics))])

    expected = loss((1, 2), [0, 1])
    np.testing.assert_allclose(loss((2, 1), [1, 0]), expected, rtol=1e-6)
    np.testing.assert_allclose(loss((1, 1), [0]) + loss((1, 1), [1]), expected, rtol=1e-6)
    assert np.abs(loss((1, 2), [0, 1], (7, 9)) - expected)[0] > 1e-3  # an entry's draw chooses its points


@pytest.mark.parametrize("key, value", [("points", 0), ("oversample", 0.5), ("uncertain", 1.5), ("masks", 0)])
def test_impossible_values_are_named(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^masks\.{key}: got {value}, expected"):
        MaskLossConfig(**{key: value})
