"""Schedules against their formulas, and one optimizer step against AdamW written out."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests import tiny
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer, make_schedule
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_warm_up_rises_from_its_first_step(warmup: int) -> None:
    schedule = make_schedule(OptimizerConfig(3e-4, warmup_steps=warmup), steps=20)
    for step in range(20):
        assert np.asarray(schedule(step)) == pytest.approx(3e-4 * min(1.0, (step + 1) / (warmup + 1)), rel=1e-5)


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_cosine_falls_to_its_last_fraction(warmup: int) -> None:
    config = OptimizerConfig(3e-4, schedule="cosine", warmup_steps=warmup, final_fraction=0.1)
    schedule = make_schedule(config, steps=25)
    for step in range(warmup, 25):
        done = (step - warmup) / (25 - warmup)
        expected = 3e-4 * (0.9 * 0.5 * (1 + math.cos(math.pi * done)) + 0.1)
        assert np.asarray(schedule(step)) == pytest.approx(expected, rel=1e-5)
    for step in (25, 1000):
        assert np.asarray(schedule(step)) == pytest.approx(3e-5, rel=1e-5)


@pytest.mark.parametrize("clip_norm", [1e9, 0.5])
def test_one_step_is_adamw_that_decays_kernels_only(clip_norm: float) -> None:
    model: Qwen2_5_VL = tiny.pretrained()[1]
    config = OptimizerConfig(1e-2, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.3, clip_norm=clip_norm)
    optimizer = make_optimizer(config, steps=10)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), model)
    updates = jax.jit(lambda grads, model: optimizer.update(grads, optimizer.init(model), model)[0])(grads, model)

    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(grads)))
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    decayed = set()
    for (path, weight), grad, update in zip(leaves, jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True):
        name = jax.tree_util.keystr(path)
        clipped = grad * min(1.0, clip_norm / norm)
        # after one step both moments are, without their bias, the gradient and its square
        expected = clipped / (np.abs(clipped) + 1e-6)
        plain = np.allclose(update, -1e-2 * expected, rtol=1e-3, atol=1e-5)
        with_decay = np.allclose(update, -1e-2 * (expected + 0.3 * np.asarray(weight)), rtol=1e-3, atol=1e-5)
        assert plain != with_decay, name
        if with_decay:
            decayed.add(name)
            assert "kernel" in name
    assert decayed == {jax.tree_util.keystr(path) for path, _ in leaves if "kernel" in jax.tree_util.keystr(path)}
    names = {jax.tree_util.keystr(path) for path, _ in leaves} - decayed
    assert any("embed_tokens" in name for name in names) and any("norm" in name for name in names)
    assert any("bias" in name for name in names)


def test_decay_spares_nothing_that_is_a_matrix_but_the_embedding() -> None:
    model: Qwen2_5_VL = tiny.pretrained()[1]
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        layers = any(part in ("layers", "blocks") for part in path)
        if np.ndim(leaf) - layers == 2:
            assert path[-1] in ("kernel", "embed_tokens"), path
