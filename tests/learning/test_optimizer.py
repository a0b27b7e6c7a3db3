"""Schedules against their formulas; optimizer steps against AdamW written out, torch's, and Adafactor written out."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from tests.kit import tiny
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer, make_schedule
from vitar_jax.learning.train_state import abstract_train_state
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.registry import abstract_model, config_from_hf
from vitar_jax.parallel.mesh import ShardingRules, make_mesh


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


def test_the_line_falls_to_its_last_fraction() -> None:
    schedule = make_schedule(OptimizerConfig(3e-4, schedule="linear", warmup_steps=5, final_fraction=0.1), steps=25)
    for step in range(5, 30):
        assert np.asarray(schedule(step)) == pytest.approx(3e-4 * (1 - 0.9 * min((step - 5) / 20, 1)), rel=1e-5)


@pytest.mark.slow
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


SHAPES = {"bias": (130,), "kernel": (130, 200)}  # wide enough to be factored
STEPS = 10


def weights_after(config: OptimizerConfig) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Some weights, the gradients of some steps, and the weights after them."""
    rng = np.random.default_rng(0)
    first = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    grads = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(STEPS)]
    optimizer = make_optimizer(config, STEPS)
    params = jax.tree.map(jnp.asarray, first)
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return first, grads, jax.tree.map(np.asarray, params)


@pytest.mark.slow
@pytest.mark.parametrize("first_moment, tolerance", [("float32", 1e-5), ("bfloat16", 3e-3)])
def test_steps_are_those_of_torch(first_moment: Any, tolerance: float) -> None:
    config = OptimizerConfig(
        1e-2, schedule="linear", final_fraction=0.0, beta2=0.98, weight_decay=0.3, clip_norm=1.0, first_moment=first_moment
    )
    first, grads, ours = weights_after(config)
    params = {name: torch.nn.Parameter(torch.tensor(values)) for name, values in first.items()}
    groups = [{"params": [params["bias"]], "weight_decay": 0.0}, {"params": [params["kernel"]], "weight_decay": 0.3}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(config.beta1, config.beta2), eps=config.epsilon)
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: 1 - step / STEPS)
    for grad in grads:
        for name, values in grad.items():
            params[name].grad = torch.tensor(values)
        torch.nn.utils.clip_grad_norm_(list(params.values()), config.clip_norm)
        theirs.step()
        schedule.step()
    for name, expected in params.items():
        moved = np.linalg.norm(expected.detach().numpy() - first[name])
        assert np.linalg.norm(ours[name] - expected.detach().numpy()) <= tolerance * moved


@pytest.mark.slow
def test_factored_steps_are_those_of_adafactor() -> None:
    config = OptimizerConfig(1e-2, weight_decay=0.3, clip_norm=1e9, second_moment="factored")
    first, grads, ours = weights_after(config)
    weight, rows, columns, mean = first["kernel"].astype(np.float64), np.zeros((130, 1)), np.zeros((1, 200)), 0.0
    for step, grad in enumerate(grads, start=1):
        decay = 1 - step**-0.8
        squares = grad["kernel"].astype(np.float64) ** 2
        rows = decay * rows + (1 - decay) * squares.mean(axis=1, keepdims=True)
        columns = decay * columns + (1 - decay) * squares.mean(axis=0, keepdims=True)
        scaled = grad["kernel"] / np.sqrt(rows * columns / rows.mean())
        scaled /= max(1.0, np.sqrt(np.mean(scaled**2)))
        mean = 0.9 * mean + 0.1 * scaled
        weight -= 1e-2 * (mean / (1 - 0.9**step) + 0.3 * weight)
    np.testing.assert_allclose(ours["kernel"], weight, atol=1e-5)


@pytest.mark.parametrize("second_moment, bytes_each", [("float32", 6), ("factored", 2)])
def test_small_moments_are_small_and_spread(second_moment: Any, bytes_each: int) -> None:
    """Of a parameter, a first moment in bf16 takes two bytes, a second one four or, factored, hardly any."""
    config = OptimizerConfig(1e-3, first_moment="bfloat16", second_moment=second_moment)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 16, "num_key_value_heads": 8}
    theirs = tiny.hf_config(**sizes, vocab_size=2048, vision={"out_hidden_size": 256})
    model = abstract_model(config_from_hf(theirs.to_dict()))
    state, spread = abstract_train_state(lambda: model, make_optimizer(config, 1), make_mesh(2, 2, 2), ShardingRules())
    size = sum(leaf.size for leaf in jax.tree.leaves(model))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    assert bytes_each * size < held < (bytes_each + 0.2) * size
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(spread), strict=True):
        sharding.shard_shape(leaf.shape)
