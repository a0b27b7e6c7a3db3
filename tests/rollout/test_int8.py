"""Weights of rollout in int8, against numpy's rounding of the model's own matrices."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.kit import micro, parity, tiny, tiny_qwen3
from tests.kit import rollout as engines
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.programs import Call, Programs
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.int8 import Int8Matrix
from vitar_jax.models.lora import LoraConfig, add_lora, merge_lora
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.parallel.topology import H200, Topology, find_topology
from vitar_jax.plan.__main__ import argument_bytes, describe, make_plan
from vitar_jax.plan.hlo import Memory
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.rollout.checkpoint import load_rollout_weights
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

KITS = {"qwen2_5": tiny, "qwen3": tiny_qwen3}
CORRECTION = dict(old_logprobs="trainer", correction="token_truncate")
TOLERANCE = 1e-4
TINY = float(np.finfo(np.float32).tiny)


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


def in_numpy(matrix: Any, axis: int = -2) -> tuple[np.ndarray, np.ndarray]:
    """Values and scales, in fp32 as the model computes them, so that halves are rounded alike."""
    matrix = np.asarray(matrix, np.float32)
    scale = np.abs(matrix).max(axis, keepdims=True) / np.float32(127)
    return np.rint(matrix / scale).astype(np.int8), scale


def rounded(model: Any) -> Any:
    """A model whose decoder, embeddings and head have gone to int8 and back."""

    def back(path: Any, leaf: jax.Array) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "model/embed_tokens" in name:
            values, scale = in_numpy(leaf, -1)
        elif "visual" not in name and "kernel" in name:
            values, scale = in_numpy(leaf)
        else:
            return leaf
        return values * scale

    return jax.tree_util.tree_map_with_path(back, model)


@given(arrays.arrays(np.float32, (2, 4, 3), elements=st.floats(-8, 8, width=32)), st.sampled_from([-1, -2]))
def test_each_value_is_the_nearest_of_255(matrix: np.ndarray, axis: int) -> None:
    made = Int8Matrix.of(matrix, axis=axis)
    most = np.abs(matrix).max(axis, keepdims=True)
    assert made.scale.shape == most.shape and made.values.dtype == np.int8 and made.values.min(initial=0) >= -127
    assert np.all(np.abs(made.values * made.scale - matrix) <= most * (0.5 / 127 + 1e-6) + TINY)
    assert np.all(np.abs(np.asarray(made.values)).max(axis)[most.squeeze(axis) > 127 * TINY] == 127)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 4e-3)])
def test_a_product_takes_the_values_and_then_the_scales(dtype: Any, tolerance: float) -> None:
    """Also in bf16, where only the inputs are rounded: values times scales are not."""
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(5, 64)), rng.normal(size=(64, 48)) * np.exp(rng.normal(size=48))
    values, scale = in_numpy(matrix)
    given = jax.numpy.asarray(x, dtype)
    exactly = np.asarray(given, np.float64) @ (values * scale.astype(np.float64))
    ours = Int8Matrix.of(matrix).product(given)
    assert ours.dtype == np.float32
    assert parity.relative_error(ours, exactly) <= 1e-6
    assert parity.relative_error(ours, x @ (values * scale)) <= tolerance
    table = Int8Matrix.of(matrix.T, axis=-1)
    np.testing.assert_allclose(table.rows(np.array([7, 3]), np.float32), (values * scale).T[[7, 3]], rtol=1e-6)


@cache
def view(kit: str = "qwen2_5") -> RolloutWeights:
    return rollout_weights(KITS[kit].pretrained()[1], weights="int8")


def assert_is_rounded(view: RolloutWeights, model: Any) -> None:
    """Each matrix that decode reads has numpy's values; every other parameter is the model's."""
    whole = dict(leaf_paths(rollout_weights(model).layers))
    found = dict(leaf_paths(view.layers))
    kernels = [path for path in found if path.endswith("/kernel")]
    assert len(kernels) == 7 * len(view.layers)
    for path in kernels:
        values, scale = in_numpy(whole[path])
        assert np.array_equal(found.pop(path), values), path
        np.testing.assert_allclose(found.pop(path.replace("/kernel", "/scale")), scale, rtol=1e-6)
    assert found and all(np.array_equal(leaf, whole[path]) for path, leaf in found.items())
    table, head = view.embed_tokens, view.head
    assert isinstance(table, Int8Matrix) and isinstance(head, Int8Matrix)
    assert np.array_equal(table.values, in_numpy(model.model.embed_tokens[...], -1)[0])
    assert np.array_equal(head.values, in_numpy(model.head())[0])
    ours, theirs = (jax.tree.leaves(part) for part in ((view.visual, view.norm), (model.visual, model.model.norm)))
    assert all(a.dtype == np.float32 and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_the_matrices_that_decode_reads_are_rounded_and_nothing_else(tie: bool) -> None:
    model = tiny.pretrained(tie=tie)[1]
    assert_is_rounded(rollout_weights(model, weights="int8"), model)


@pytest.mark.slow
def test_adapters_are_merged_before_rounding() -> None:
    config = LoraConfig(rank=4, alpha=8.0)
    adapted = add_lora(tiny.pretrained()[1], config, jax.random.key(0), lambda path: "visual" not in path)
    rng = np.random.default_rng(0)

    def move(path: Any, leaf: jax.Array) -> Any:
        return 0.2 * rng.normal(size=leaf.shape).astype(np.float32) if "lora" in jax.tree_util.keystr(path) else leaf

    adapted = jax.tree_util.tree_map_with_path(move, adapted)
    merged = jax.jit(merge_lora)(adapted)
    assert_is_rounded(rollout_weights(adapted, weights="int8"), merged)


@pytest.mark.slow
@pytest.mark.parametrize("kit", [pytest.param("qwen3", marks=pytest.mark.sweep), "qwen2_5"])
def test_what_is_recorded_is_what_the_rounded_model_gives(kit: str) -> None:
    """Holds through prefill, decode and tools. Those of the model before rounding differ, by little enough to correct."""
    using = engines.PROCESSOR if kit == "qwen2_5" else tiny_qwen3.processor()
    model = KITS[kit].pretrained()[1]
    played = engines.episodes(6, processor=using)
    engine = engines.Engine(engines.SIZES, using, engines.LIMITS, engines.banned())
    engines.run(engine, view(kit), played)
    assert any(len(episode.images) > 1 for episode in played)
    assert engines.teacher_forced_difference(played[:4], rounded(model), using).max() <= TOLERANCE
    gap = engines.teacher_forced_difference(played[:4], model, using).max()
    assert 100 * TOLERANCE <= gap <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kit", [pytest.param("qwen3", marks=pytest.mark.sweep), "qwen2_5"])
def test_logits_stay_within_five_percent(kit: str) -> None:
    """Of their norm, for weights and logits as sharp as those of the tests of parity."""
    using = engines.PROCESSOR if kit == "qwen2_5" else tiny_qwen3.processor()
    model = KITS[kit].pretrained()[1]
    examples = [episode.example() for episode in engines.episodes(4, processor=using)]
    batch = pack(examples, BatchShape(1, 4, 2 * 256, 16, using.size_classes[-1], 1024), using)

    @jax.jit
    def logits(model: Any) -> jax.Array:
        return model(**batch.inputs) @ model.head()

    kept = batch.segment_ids > 0
    ours, theirs = (np.asarray(logits(of))[kept] for of in (rounded(model), model))
    assert theirs.std() >= 1
    assert 0.01 <= parity.relative_error(ours, theirs) <= 0.05


def programs(weights: str, *, mlp: int = 1024, devices: Any = None) -> tuple[Programs, Call]:
    """Programs of a model whose projections are wide enough that one scale per channel is little."""
    config: Any = micro.get_config()
    config.model.text.update(hidden_size=256, intermediate_size=mlp, num_hidden_layers=2, mrope_section=(8, 12, 12))
    config.model.text.update(num_attention_heads=4, num_key_value_heads=2)
    config.model.vision.out_hidden_size = 256
    config.rollout.update(weights=weights, dtype="bfloat16", slots=2)
    config.stages.grpo.objective.update(CORRECTION)
    recipe = Recipe.from_config(config)
    made = Programs(recipe, build.model_config(recipe), make_mesh(1, 1, 1, devices=devices or jax.devices()[:1]))
    return made, made.call("decode", recipe.stages["grpo"])


def decode_memory(weights: str, **sizes: Any) -> tuple[int, Memory]:
    """The bytes of the weights that decode reads, and what the compiler says of the program."""
    made, call = programs(weights, **sizes)
    compiled = Memory.of(call.lower().compile())
    _, *others = call.arguments
    read = made.rollout_weights
    read = argument_bytes(Call(None, (read.embed_tokens, read.layers, read.norm, read.head)))
    # A TPU pads arrays to its tiles.
    assert compiled.arguments == pytest.approx(read + argument_bytes(Call(None, tuple(others))), rel=0.03)
    return read, compiled


@pytest.mark.slow
def test_the_weights_of_compiled_decode_halve() -> None:
    (halves, ours), (whole, theirs) = decode_memory("int8"), decode_memory("")
    assert 0.5 * whole < halves <= 0.51 * whole
    assert theirs.arguments - ours.arguments == pytest.approx(whole - halves, rel=0.02)


@pytest.mark.slow
def test_a_tpu_keeps_no_wider_copy() -> None:
    """A copy of a projection would be a temporary, as each is larger than the 128 MiB of memory on the chip's core."""
    read, memory = decode_memory("int8", mlp=2**19, devices=find_topology("v5e:1x1").devices)
    assert memory.temporaries < 0.1 * read


def test_training_plays_in_int8_and_a_plan_counts_it() -> None:
    made, call = programs("int8")
    weights = call.arguments[0]
    kernels = [leaf for path, leaf in leaf_paths(weights.layers) if path.endswith("/kernel")]
    assert kernels and all(leaf.dtype == np.int8 for leaf in kernels)
    assert all(leaf.dtype == jax.numpy.bfloat16 for leaf in jax.tree.leaves((weights.visual, weights.norm)))
    assert made.resharder.shardings.head.scale.spec == made.resharder.shardings.head.values.spec
    assert argument_bytes(call) < 0.6 * argument_bytes(programs("")[1])


@pytest.mark.parametrize("name", ["reshard", "decode"])
def test_a_plan_says_what_the_weights_take(name: str) -> None:
    """The vision tower and the norms keep bf16."""

    def planned(weights: str) -> dict[str, Any]:
        made, _ = programs(weights)
        return make_plan(made, name, "grpo", Topology("gpu:1", jax.devices()[:1], H200))

    ours, theirs = planned("int8"), planned("")
    kept = 2 * sum(leaf.size for leaf in jax.tree.leaves(programs("")[0].rollout_weights.visual))
    assert ours["rollout_weights"] - kept == pytest.approx((theirs["rollout_weights"] - kept) / 2, rel=0.02)
    assert f"weights of rollout: {ours['rollout_weights'] / 2**30:.2f} GiB" in describe(ours)


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_in_its_own_type(tmp_path: Path) -> None:
    theirs, model = tiny.pretrained()
    theirs.save_pretrained(tmp_path)
    loaded = load_rollout_weights(tmp_path, model.config, dataclasses.replace(engines.SIZES, weights="int8"))
    assert np.array_equal(np.asarray(loaded.head), model.head())
    assert np.array_equal(np.asarray(loaded.embed_tokens), model.model.embed_tokens[...])


@pytest.mark.parametrize("objective", [{}, {"old_logprobs": "trainer"}])
def test_a_loss_without_a_correction_is_refused(objective: dict[str, str]) -> None:
    config: Any = micro.get_config()
    config.rollout.weights = "int8"
    config.stages.grpo.objective.update(objective)
    with pytest.raises(ConfigError, match="rollout.weights: int8, .*; config.stages.grpo.objective: set .* a correction"):
        Recipe.from_config(config)
    config.stages.grpo.objective.update(CORRECTION)
    Recipe.from_config(config)
    config.rollout.weights = "int4"
    with pytest.raises(ConfigError, match="config.rollout.weights: .*int8"):
        Recipe.from_config(config)
