"""Training with masks: the loss of one pass, what learns and what is frozen, the same on one device and on eight."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import dice_loss, sample_point

from tests.kit import masked
from vitar_jax.learning.mask_loss import choose_points
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.train_state import restart
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.learning.trainable import Trainable
from vitar_jax.models.family import MASK_PARTS, PARTS, Part
from vitar_jax.models.lora import LoraConfig
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import abstract_model
from vitar_jax.models.sa2va import SA2VA, SIZES
from vitar_jax.parallel.mesh import ShardingRules, batch_sharding, make_mesh
from vitar_jax.processing.packing import Batch

STEPS = 40
LEARNT: tuple[Part, ...] = ("decoder", "bridge", "mask_decoder")  # of VRT, with adapters in the decoder
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, epsilon=1e-4)


class Trained(NamedTuple):
    """Metrics of each step, the gradient of the first, and the state after the last."""

    metrics: list[dict[str, float]]
    gradient: Any
    state: Any


def train(batch: Batch, sizes: Sequence[int], steps: int, micro_batches: int = 1) -> Trained:
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    optimizer = optax.chain(optax.trace(decay=0.0), make_optimizer(OPTIMIZER, STEPS))  # the trace holds the newest gradient
    trainable = Trainable(LEARNT)
    metrics, gradients = [], []
    with jax.default_matmul_precision("highest"):
        state = restart(masked.copy(), optimizer, mesh, ShardingRules(), trainable)
        step = make_train_step(
            masked.OBJECTIVE,
            optimizer,
            jnp.asarray(masked.banned()),
            trainable=trainable,
            max_tokens=256,
            mesh=mesh,
            shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
            micro_batches=micro_batches,
        )
        on_device = jax.device_put(batch, batch_sharding(mesh))
        for _ in range(steps):
            state, found = step(state, on_device)
            metrics.append({name: float(value) for name, value in found.items()})
            gradients.append(jax.tree.map(np.asarray, optax.tree_utils.tree_get(state.opt_state, "trace")))
    return Trained(metrics, gradients[0], state)


@cache
def on_one_device() -> Trained:
    return train(masked.make_batch(masked.shape(1)), (1, 1, 1), STEPS)


@pytest.mark.slow
def test_masks_are_learnt_and_frozen_parts_cost_nothing() -> None:
    trained = on_one_device()
    first, last = trained.metrics[0], trained.metrics[-1]
    for name in ("loss", "masks/cross_entropy", "masks/dice"):
        assert last[name] < 0.9 * first[name], name
    assert last["masks/iou"] > 2 * first["masks/iou"]
    moved = {"bridge": False, "mask_decoder": False, "decoder": False}
    moments = {path for path, _ in leaf_paths(trained.gradient)}
    for (path, weight), before in zip(leaf_paths(trained.state.model), jax.tree.leaves(masked.model()), strict=True):
        part = SA2VA.part_of(path)
        same = np.asarray(weight).tobytes() == np.asarray(before).tobytes()
        if part in LEARNT:
            assert path in moments
            moved[part] |= not same
        else:
            assert same and path not in moments, path
    assert all(moved.values())


@pytest.mark.slow
def test_the_loss_is_that_of_language_and_of_masks_in_one_pass() -> None:
    """An independent form of the first step: log-probabilities in numpy, masks in torch, states of the same pass."""
    batch, model = masked.make_batch(masked.shape(1)), masked.model()
    masks = batch.masks
    assert masks is not None

    @jax.jit
    def forward(model: Any) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            hidden = model(**batch.inputs)
            return hidden[0] @ model.head(), model.masks_of(hidden, masks)[0]

    logits, of_masks = (np.asarray(each, np.float64) for each in forward(model))
    logits[..., masked.banned()] = -np.inf
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    told = [logprobs[row, place - 1, token] for row, place, token in zip(*_learnt(batch), strict=True)]
    cross_entropy, dice, count = 0.0, 0.0, 0
    targets = np.asarray(masks.unpacked())[0]
    for entry in range(masked.ROWS):
        for place in range(masked.MASKS):
            key = jax.random.fold_in(jax.random.key(masks.draws[0, entry]), place)
            drawn = choose_points(jnp.float32(of_masks[None, entry, place]), masked.LOSS, key[None])
            points = torch.tensor(np.asarray(drawn)).double()
            predicted, wanted = (
                sample_point(torch.tensor(each)[None, None].double(), points, align_corners=False)
                for each in (of_masks[entry, place], targets[entry, place])
            )
            cross_entropy += torch.nn.functional.binary_cross_entropy_with_logits(predicted, wanted).item()
            dice += dice_loss(predicted[0], wanted[0], 1).item()
            count += 1
    expected = -np.mean(told) + 2.0 * cross_entropy / count + 0.5 * dice / count
    found = on_one_device().metrics[0]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["masks/cross_entropy"] == pytest.approx(cross_entropy / count, rel=1e-5)


def _learnt(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, place and id of the tokens under the loss mask."""
    rows, places = np.nonzero(batch.loss_mask[0])
    return rows, places, batch.token_ids[0, rows, places]


@pytest.mark.slow
def test_a_batch_teaches_the_same_however_it_is_split() -> None:
    """In two micro-batches of each of four data shards over eight devices, in another order."""
    ours = train(masked.make_batch(masked.shape(8), [3, 0, 7, 5, 1, 6, 4, 2]), (2, 2, 2), 1, micro_batches=2)
    alone = on_one_device()
    for name, value in alone.metrics[0].items():
        assert ours.metrics[0][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    for (path, gradient), wanted in zip(leaf_paths(ours.gradient), jax.tree.leaves(alone.gradient), strict=True):
        assert np.linalg.norm(gradient - wanted) <= 1e-4 * np.linalg.norm(wanted) + 1e-7, path


@pytest.mark.slow
def test_adapters_are_of_the_language_model_alone() -> None:
    """SAM 2 and the tower have projections of the same names as the decoder's; the published recipe adapts the decoder's."""
    config = SIZES["sa2va_qwen3_vl_4b"]
    lora = LoraConfig(rank=128, alpha=256.0)
    prepared = jax.eval_shape(Trainable(LEARNT, lora=lora).prepare, abstract_model(config))
    learnt, _ = Trainable(LEARNT, lora=lora).split(prepared)
    adapters = [path for path, _ in leaf_paths(learnt) if "/lora/" in path]
    assert {path.split("/")[-3] for path in adapters} == set(lora.targets)
    assert all(path.startswith("model/layers/") for path in adapters)
    assert sum(leaf.size for path, leaf in leaf_paths(learnt) if "/lora/" in path) == 264_241_152
    whole = {SA2VA.part_of(path) for path, _ in leaf_paths(learnt) if "/lora/" not in path}
    assert whole == {"bridge", "mask_decoder"}
    assert {*PARTS, *MASK_PARTS} >= whole
