"""The train step: the same loss and the same weights on one device and on eight, however a batch is laid out."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.kit.training import BANNED, MESHES, TOLERANCE, copy, make_batch, model, shape
from vitar_jax.learning.experts import ExpertsConfig
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_loss import PRESETS
from vitar_jax.learning.objective import Objective, score_tokens
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.sft import SFT, sft_loss
from vitar_jax.learning.train_state import TrainState, first_state, reference_weights, restart
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.models.logprobs import token_logprobs
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.parallel.mesh import ShardingRules, batch_sharding, make_mesh
from vitar_jax.processing.packing import Batch, BatchShape

STEPS = 3
# By sequence and with every pass before the update.
WHOLE = GRPO(
    **PRESETS["gspo"],
    kl_coefficient=0.1,
    old_logprobs="trainer",
    correction="sequence_truncate",
    correction_high=1e3,
    entropy_coefficient=0.1,
)
# Two streams, with all that an expert's episodes add.
MIXED = GRPO(
    old_logprobs="trainer",
    entropy_coefficient=0.1,
    experts=ExpertsConfig(traces=("unused",), mu_peak=0.3, mu_valley=0.3, token_weight="entropy", supervise="right"),
)
# Tokens of high entropy and of high covariance, selected from the full batch.
SELECTING = GRPO(entropy_share=0.5, covariance="kl", covariance_share=0.2)
# A larger epsilon than in training: where a gradient is all but zero, Adam would divide noise by noise.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, epsilon=1e-4)


def other_model(family: str) -> Any:
    """Weights near the model's, as a reference."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf * 1.02), model(family))


class Trained(NamedTuple):
    """Metrics of some steps, the gradient of the first, and the weights after the last."""

    metrics: list[dict[str, float]]
    gradient: Any
    model: Any


def train(
    batch: Batch,
    sizes: Sequence[int],
    objective: Objective,
    steps: int,
    micro_batches: int = 1,
    family: str = "qwen2_5_vl",
) -> Trained:
    """Some steps on a mesh of these sizes."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    # A trace without memory holds the newest gradient.
    optimizer = optax.chain(optax.trace(decay=0.0), make_optimizer(OPTIMIZER, steps))
    given: dict[str, Any] = {"max_tokens": 64, "mesh": mesh, "micro_batches": micro_batches}
    found, gradients = [], []
    with jax.default_matmul_precision("highest"):
        state = restart(copy(family), optimizer, mesh, ShardingRules())
        given["shardings"] = jax.tree.map(lambda leaf: leaf.sharding, state)
        step: Any = make_train_step(objective, optimizer, jnp.asarray(BANNED), **given)
        reference = (other_model(family),) if objective.needs_reference else ()
        on_device = jax.device_put(batch, batch_sharding(mesh))
        for _ in range(steps):
            state, metrics = step(state, on_device, *reference)
            found.append({name: float(value) for name, value in sorted(metrics.items())})
            gradients.append(jax.tree.map(np.asarray, optax.tree_utils.tree_get(state.opt_state, "trace")))
        assert int(state.step) == steps
        assert step._cache_size() <= 1  # a step returns the state in the shardings that the next one takes
        check_spread(state, mesh.shape["fsdp"] * mesh.shape["tensor"])
    return Trained(found, gradients[0], state.model)


def check_spread(state: TrainState, parts: int) -> None:
    """Weights and moments really are cut into so many parts."""
    most = max(leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves((state.model, state.opt_state)))
    assert most == parts


def distance(model: Any, other: Any) -> float:
    """The largest ||a - b|| / ||b|| of any weight."""
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True)
    return max(float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)) for a, b in pairs)


@cache
def on_one_device(objective: Objective, steps: int, family: str = "qwen2_5_vl") -> Trained:
    return train(batch_of(objective, shape(1, family=family), family), (1, 1, 1), objective, steps, family=family)


def batch_of(objective: Objective, layout: BatchShape, family: str = "qwen2_5_vl") -> Batch:
    return make_batch(layout, streams=objective == MIXED, family=family)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, sizes, objective, steps",
    [
        pytest.param("qwen2_5_vl", (1, 2, 4), SFT(), STEPS, id="sft-(1, 2, 4)"),
        pytest.param("qwen2_5_vl", (8, 1, 1), GRPO(), 1, id="grpo-(8, 1, 1)"),
        pytest.param("qwen2_5_vl", (2, 2, 2), WHOLE, 1, id="whole-(2, 2, 2)"),
        pytest.param("qwen2_5_vl", (4, 2, 1), MIXED, 1, id="mixed-(4, 2, 1)"),
        pytest.param("qwen3_vl", (2, 2, 2), SFT(), 20, id="qwen3_vl-sft-(2, 2, 2)"),
        *[
            pytest.param("qwen2_5_vl", sizes, SFT(), STEPS, id=f"sft-{sizes}", marks=pytest.mark.sweep)
            for sizes in MESHES[:3]
        ],
        pytest.param("qwen3_vl", (1, 8, 1), WHOLE, 1, id="qwen3_vl-whole-(1, 8, 1)", marks=pytest.mark.sweep),
    ],
)
def test_eight_devices_learn_what_one_does(
    family: str, sizes: tuple[int, int, int], objective: Objective, steps: int
) -> None:
    bins = sizes[0] * sizes[1]
    batch = batch_of(objective, shape(bins, family=family), family)
    assert all((batch.patch_positions[i] >= 0).any() for i in range(bins))  # an image in every bin
    alone = on_one_device(objective, steps, family)
    assert_same(train(batch, sizes, objective, steps, family=family), alone)
    assert distance(alone.model, model(family)) > 100 * TOLERANCE  # they did learn


def assert_same(ours: Trained, expected: Trained) -> None:
    for step, wanted_step in zip(ours.metrics, expected.metrics, strict=True):
        assert step.keys() == wanted_step.keys()
        for name, wanted in wanted_step.items():
            assert step[name] == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE), name
    for (path, gradient), wanted in zip(leaf_paths(ours.gradient), jax.tree.leaves(expected.gradient), strict=True):
        assert np.abs(gradient - wanted).max() <= TOLERANCE * np.abs(wanted).max() > 0, path
    assert distance(ours.model, expected.model) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes, micro_batches, objective, steps",
    [
        pytest.param((1, 1, 1), 4, WHOLE, 1, id="one device-whole"),
        pytest.param((1, 2, 2), 2, SFT(), STEPS, id="four devices-sft"),
        pytest.param((1, 1, 1), 4, MIXED, 1, id="one device-mixed"),
        pytest.param((1, 1, 1), 4, SFT(), STEPS, id="one device-sft", marks=pytest.mark.sweep),
        pytest.param((1, 1, 1), 4, GRPO(), 1, id="one device-grpo", marks=pytest.mark.sweep),
        pytest.param((1, 2, 2), 2, GRPO(), 1, id="four devices-grpo", marks=pytest.mark.sweep),
        pytest.param((1, 2, 2), 2, WHOLE, 1, id="four devices-whole", marks=pytest.mark.sweep),
        pytest.param((1, 1, 1), 4, SELECTING, 1, id="one device-selecting", marks=pytest.mark.sweep),
    ],
)
def test_micro_batches_add_up_to_the_batch(
    sizes: tuple[int, int, int], micro_batches: int, objective: Objective, steps: int
) -> None:
    """Four bins with different numbers of policy tokens; all metrics too."""
    batch = batch_of(objective, shape(4))
    assert len(set(batch.loss_mask.sum(axis=(1, 2)))) > 1
    assert_same(train(batch, sizes, objective, steps, micro_batches=micro_batches), on_one_device(objective, steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, spoil",
    [
        (SFT(), lambda batch: dataclasses.replace(batch, pixels=jnp.full_like(batch.pixels, np.nan))),
        (GRPO(), lambda batch: batch.with_extras(advantages=jnp.full_like(batch.extras["advantages"], 1e25))),
    ],
    ids=["loss", "norm"],
)
def test_a_step_that_is_not_finite_changes_nothing(objective: Objective, spoil: Callable[[Batch], Batch]) -> None:
    """Advantages of 1e25 make a gradient whose norm alone overflows."""
    optimizer = make_optimizer(OptimizerConfig(1e-3, warmup_steps=2), steps=3)
    step = make_train_step(objective, optimizer, jnp.asarray(BANNED))
    good = jax.tree.map(jnp.asarray, make_batch(shape(1)))
    bad = spoil(good)
    plain, _ = step(first_state(copy(), optimizer), good)
    plain, _ = step(plain, good)
    state, _ = step(first_state(copy(), optimizer), good)
    state, metrics = step(state, bad)
    assert np.isfinite(metrics["loss"]) == isinstance(objective, GRPO) and not np.isfinite(metrics["grad_norm"])
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (1, 1)
    state, _ = step(state, good)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (3, 1, 0)
    for (path, ours), expected in zip(
        leaf_paths((state.model, state.opt_state)), jax.tree.leaves((plain.model, plain.opt_state)), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(expected).tobytes(), path


def score(weights: Any, batch: Batch) -> jax.Array:
    """Returns the log-probabilities of a batch."""
    hidden = weights(**batch.inputs)
    return score_tokens(weights, hidden, batch, jnp.asarray(BANNED), temperature=1.0, max_tokens=None, chunk=64).logprobs


@pytest.mark.slow
def test_the_effective_sample_size_is_that_of_the_importance_weights() -> None:
    batch = jax.tree.map(jnp.asarray, make_batch(shape(1)))
    with jax.default_matmul_precision("highest"):
        logprobs = score(copy(), batch)
    weights = np.exp(np.asarray(logprobs - batch.extras["old_logprobs"], np.float64)[np.asarray(batch.loss_mask)])
    expected = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
    assert 0 < expected < 0.5
    assert on_one_device(GRPO(), 1).metrics[0]["effective_sample_size"] == pytest.approx(expected, rel=1e-4)


# One device, other layouts


def loss_and_gradient(batch: Batch) -> tuple[float, float, Any]:
    """Loss, gradient norm, and the weights after one step of plain gradient descent, which show the gradient."""
    optimizer = optax.sgd(1.0)
    weights = copy()
    step = make_train_step(GRPO(), optimizer, jnp.asarray(BANNED))
    with jax.default_matmul_precision("highest"):
        state = first_state(weights, optimizer)
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch))
    return float(metrics["loss"]), float(metrics["grad_norm"]), state.model


@cache
def plain() -> tuple[float, float, Any]:
    return loss_and_gradient(make_batch(shape(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, order",
    [
        (shape(1, rows=9, tokens=160, images=11), range(8)),  # several examples a row, and more padding of every kind
        (shape(2, rows=2, tokens=160, images=8), (5, 2, 7, 0, 1, 6, 3, 4)),  # in two bins, in another order
    ],
    ids=["packed", "shuffled"],
)
def test_a_layout_changes_neither_loss_nor_gradient(layout: BatchShape, order: Sequence[int]) -> None:
    loss, norm, learnt = loss_and_gradient(make_batch(layout, order))
    expected_loss, expected_norm, expected = plain()
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE, abs=TOLERANCE)
    assert norm == pytest.approx(expected_norm, rel=1e-4)
    assert distance(learnt, expected) <= 1e-4
    assert distance(expected, model()) > 1e-2


# Rows that are filled


def filled(layout: BatchShape, sequence: int, *, streams: bool = False) -> Batch:
    """A batch whose micro-batches are filled one after another, by `sequence` of them."""
    return make_batch(dataclasses.replace(layout, sequence=sequence), streams=streams)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes, layout, objective",
    [
        pytest.param((1, 1, 1), shape(4, tokens=64, images=6), WHOLE, id="one device", marks=pytest.mark.sweep),
        pytest.param((2, 2, 2), shape(16, rows=1, tokens=44, images=2), MIXED, id="eight devices"),
    ],
)
def test_empty_micro_batches_are_skipped(sizes: tuple[int, int, int], layout: BatchShape, objective: GRPO) -> None:
    """Of four micro-batches on a shard, one or two hold episodes. Loss, gradients and metrics are those of one row each."""
    batch = filled(layout, 4, streams=objective == MIXED)
    held = (batch.segment_ids > 0).any(axis=(1, 2)).reshape(-1, 4).sum(axis=1)
    assert held.max() == 2 and (len(held) == 1 or held.min() == 1)
    learnt = train(batch, sizes, dataclasses.replace(objective, packed=True), 1, micro_batches=4)
    assert learnt.metrics[0].pop("filled_share") == 0.5
    alone = on_one_device(objective, 1)
    assert_same(learnt, alone)
    assert learnt.metrics[0]["loss"] == pytest.approx(alone.metrics[0]["loss"], rel=1e-6)
    difference = jax.tree.map(np.subtract, learnt.gradient, alone.gradient)
    assert optax.global_norm(difference) <= 1e-6 * optax.global_norm(alone.gradient)


@pytest.mark.slow
def test_minibatches_stay_what_they_are_where_rows_are_filled() -> None:
    """The first minibatch fills one micro-batch and the second does too, after passes of the policy and the reference."""
    objective, layout = dataclasses.replace(WHOLE, epochs=2, minibatches=2), shape(4, images=6)
    batch = filled(layout, 2)
    assert (batch.segment_ids > 0).any(axis=(1, 2)).tolist() == [True, False, True, False]
    (learnt,), (metrics,) = several(dataclasses.replace(objective, packed=True), batch, micro_batches=4)
    (expected,), (wanted,) = several(objective, make_batch(layout), micro_batches=4)
    assert metrics.pop("filled_share") == 0.5
    assert metrics == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert distance(learnt, expected) <= 1e-6 < 1e-3 < distance(learnt, model())


# Several updates a rollout, and passes before them


def several(objective: GRPO, batch: Batch, *, micro_batches: int = 1, steps: int = 1) -> tuple[list[Any], list[Any]]:
    """Weights and metrics after each step of plain gradient descent on one batch, with the first weights as the reference."""
    optimizer = optax.sgd(0.1)
    step = make_train_step(objective, optimizer, jnp.asarray(BANNED), micro_batches=micro_batches)
    weights, learnt, found = copy(), [], []
    reference = (jax.jit(reference_weights)(weights),) if objective.needs_reference else ()
    with jax.default_matmul_precision("highest"):
        state = first_state(weights, optimizer)
        for _ in range(steps):
            state, metrics = step(state, jax.tree.map(jnp.asarray, batch), *reference)
            learnt.append(jax.tree.map(np.array, state.model))
            found.append(jax.tree.map(float, metrics))
        assert int(state.step) == steps
    return learnt, found


def scored(weights: Any, batch: Batch) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(score)(weights, batch))


@pytest.mark.slow
def test_old_logprobs_are_the_trainers_where_they_are_to_be() -> None:
    batch = make_batch(shape(1))
    _, (metrics,) = several(GRPO(old_logprobs="trainer", correction="token_truncate", correction_high=5.0), batch)
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6) and metrics["ratio_max"] == pytest.approx(1, rel=1e-5)
    difference = (scored(model(), batch) - batch.extras["old_logprobs"])[batch.loss_mask]
    assert metrics["correction"] == pytest.approx(np.mean(np.minimum(np.exp(difference), 5)), rel=1e-4)
    _, (as_sampled,) = several(GRPO(), batch)
    assert as_sampled["ratio_max"] == pytest.approx(np.exp(difference.max()), rel=1e-4) != 1


@pytest.mark.slow
def test_an_experts_old_logprobs_stay_zero_and_its_metrics_are_its_own() -> None:
    batch = make_batch(shape(1), streams=True)
    _, (metrics,) = several(dataclasses.replace(MIXED, correction="token_truncate", correction_high=5.0), batch)
    assert metrics["ratio_max"] == pytest.approx(1, rel=1e-5) and metrics["approx_kl"] == pytest.approx(0, abs=1e-6)
    logprobs, expert = scored(model(), batch), batch.loss_mask & (batch.extras["expert"] == 1)
    assert metrics["expert/probability"] == pytest.approx(np.exp(logprobs)[expert].mean(), rel=1e-4)
    assert metrics["expert/low_probability"] == pytest.approx((np.exp(logprobs)[expert] < 0.05).mean())
    policy = batch.loss_mask & ~expert
    gap = np.abs(logprobs - batch.extras["old_logprobs"])[policy]
    assert metrics["logprob_gap_max"] == pytest.approx(gap.max(), rel=1e-4)
    assert metrics["correction"] == pytest.approx(
        np.minimum(np.exp(logprobs - batch.extras["old_logprobs"])[policy], 5).mean(), rel=1e-4
    )


@pytest.mark.slow
def test_signals_are_the_mean_sizes_of_the_gradient_by_a_tokens_logprob() -> None:
    """With a mean over tokens and before any update, the policy's is the mean of |A|, and the expert's that of p A if A > 0."""
    batch = make_batch(shape(1), streams=True)
    expert = batch.extras["expert"] == 1
    advantages = np.where(expert, np.abs(batch.extras["advantages"]), batch.extras["advantages"])
    objective = GRPO(old_logprobs="trainer", experts=ExpertsConfig(traces=("unused",)))
    _, (metrics,) = several(objective, batch.with_extras(advantages=advantages))
    p = np.exp(scored(model(), batch))
    assert metrics["signal"] == pytest.approx(np.abs(advantages[batch.loss_mask & ~expert]).mean(), rel=1e-4)
    assert metrics["expert/signal"] == pytest.approx((p * advantages)[batch.loss_mask & expert].mean(), rel=1e-4)


@pytest.mark.slow
def test_the_reference_stays_while_the_model_learns() -> None:
    batch = make_batch(shape(1))
    config = GRPO(kl_coefficient=0.1)
    (once, _), (first, second) = several(config, batch, steps=2)
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    d = (scored(model(), batch) - scored(once, batch))[batch.loss_mask]
    assert second["kl"] == pytest.approx(np.mean(np.exp(d) - d - 1), rel=1e-3) and second["kl"] > 1e-4


@pytest.mark.slow
def test_a_rollout_may_be_learnt_from_in_several_updates() -> None:
    """As by hand: each minibatch is a batch of its own, and what is old stays old."""
    whole = make_batch(shape(4))
    (learnt,), (metrics,) = several(GRPO(old_logprobs="trainer", epochs=2, minibatches=2), whole, micro_batches=4)
    whole = whole.with_extras(old_logprobs=scored(model(), whole))
    optimizer = optax.sgd(0.1)
    step = make_train_step(GRPO(), optimizer, jnp.asarray(BANNED))
    weights, found = copy(), []
    by_hand = first_state(weights, optimizer)
    with jax.default_matmul_precision("highest"):
        for half in (slice(0, 2), slice(2, 4)) * 2:
            by_hand, of_half = step(by_hand, jax.tree.map(lambda values, half=half: jnp.asarray(values[half]), whole))
            found.append(jax.tree.map(float, of_half))
            if len(found) == 2:
                after_one_epoch = jax.tree.map(np.array, by_hand.model)
    assert distance(learnt, by_hand.model) <= TOLERANCE
    assert distance(learnt, after_one_epoch) > 100 * TOLERANCE
    for name in ("loss", "grad_norm", "approx_kl"):
        assert metrics[name] == pytest.approx(np.mean([m[name] for m in found]), rel=1e-4, abs=1e-6)
    assert metrics["ratio_max"] == pytest.approx(max(m["ratio_max"] for m in found), rel=1e-4)
    assert metrics["ratio_max"] > 1.001


@pytest.mark.slow
def test_observations_are_no_targets() -> None:
    """What a tool says is read and never learnt: as a target it is out, so its label may be anything."""
    model = copy()
    batch = jax.tree.map(jnp.asarray, make_batch(shape(1)))
    # The last token of each row is seen by no other: only as a target could it count.
    lengths = np.count_nonzero(np.asarray(batch.segment_ids)[0], axis=1)
    last = (0, np.arange(len(lengths)), lengths - 1)
    batch = dataclasses.replace(batch, loss_mask=batch.loss_mask.at[last].set(False))
    other = dataclasses.replace(batch, token_ids=batch.token_ids.at[last].set(7))
    assert not np.array_equal(batch.token_ids, other.token_ids)
    logprobs = jax.jit(partial(score, model))
    assert np.array_equal(logprobs(batch), logprobs(other))

    unmasked = batch.loss_mask.at[last].set(True)
    batch, other = (dataclasses.replace(each, loss_mask=unmasked) for each in (batch, other))
    assert not np.array_equal(logprobs(batch), logprobs(other))


@pytest.mark.slow
def test_no_gradient_comes_from_a_token_that_is_not_the_policys() -> None:
    """The derivative of the loss to hidden states is zero but where the next token is a policy token."""
    model = copy()
    batch = jax.tree.map(jnp.asarray, make_batch(shape(1)))
    hidden = jax.jit(model.__call__)(**batch.inputs)

    def loss_fn(hidden: jax.Array) -> jax.Array:
        logprobs, _ = token_logprobs(hidden, model.head(), batch.token_ids, batch.loss_mask, jnp.asarray(BANNED))
        return sft_loss(logprobs, batch.loss_mask)

    used = np.any(np.asarray(jax.grad(loss_fn)(hidden)) != 0, axis=-1)
    assert np.array_equal(used, np.roll(np.asarray(batch.loss_mask), -1, axis=2))
