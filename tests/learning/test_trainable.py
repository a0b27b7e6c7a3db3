"""Frozen parts: what learns learns as in a full run, what is frozen stays as it is and costs nothing."""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.kit import micro, tiny, training
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.sft import SFT
from vitar_jax.learning.train_state import TrainState, restart
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.learning.trainable import Trainable, join
from vitar_jax.models.family import PARTS
from vitar_jax.models.lora import LoraConfig
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.qwen2_5_vl import QWEN2_5_VL
from vitar_jax.parallel.mesh import ShardingRules, batch_sharding, make_mesh


@pytest.mark.parametrize("tie", [False, True])
def test_every_leaf_is_of_one_part(tie: bool) -> None:
    model = tiny.pretrained(tie=tie)[1]
    found = {part: {path for path, _ in leaf_paths(model) if QWEN2_5_VL.part_of(path) == part} for part in PARTS}
    assert found["embeddings"] == {"model/embed_tokens"}
    assert found["head"] == (set() if tie else {"lm_head/kernel"})
    assert "visual/patch_embed/kernel" in found["vision"] and "visual/merger/ln_q/weight" in found["merger"]
    assert "model/norm/weight" in found["decoder"] and "model/layers/mlp/up_proj/kernel" in found["decoder"]


def test_halves_make_the_whole() -> None:
    model = tiny.pretrained()[1]
    for parts in [("vision",), ("decoder", "head"), PARTS]:
        learnt, frozen = Trainable(parts).split(model)
        assert {QWEN2_5_VL.part_of(path) for path, _ in leaf_paths(learnt)} == set(parts)
        assert {QWEN2_5_VL.part_of(path) for path, _ in leaf_paths(frozen)} == set(PARTS) - set(parts)
        again = join(learnt, frozen)
        assert jax.tree.structure(again) == jax.tree.structure(model)
        assert all(a is b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True))


@pytest.mark.parametrize("parts", [(), ("head",)])
def test_something_has_to_learn(parts: Any) -> None:
    with pytest.raises(ConfigError, match="train: "):
        Trainable(parts).prepare(tiny.pretrained(tie=True)[1])


class Trained(NamedTuple):
    """The state after one step of plain gradient descent, which shows the gradient, and the operations of that step."""

    state: TrainState
    flops: float


@cache
def trained(trainable: Trainable, sizes: Sequence[int] = (1, 1, 1)) -> Trained:
    mesh, optimizer = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)]), optax.sgd(1.0)
    step: Any = make_train_step(SFT(), optimizer, jnp.asarray(training.BANNED), trainable=trainable, mesh=mesh)
    with jax.default_matmul_precision("highest"):
        state = restart(training.copy(), optimizer, mesh, ShardingRules(), trainable)
        batch = jax.device_put(training.make_batch(training.shape(sizes[0] * sizes[1])), batch_sharding(mesh))
        compiled = step.lower(state, batch).compile()
        return Trained(compiled(state, batch)[0], compiled.cost_analysis()["flops"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts, sizes, share",
    [
        (("decoder", "head"), (1, 1, 1), 0.9),  # no gradient for the vision tower
        (("embeddings",), (1, 1, 1), 0.8),  # none for any weight but the table
        (("merger",), (1, 1, 1), 0.9),  # one that comes through frozen layers
        (("vision", "decoder"), (1, 2, 2), 1.0),
    ],
)
def test_what_learns_learns_as_in_a_full_run(parts: Any, sizes: Sequence[int], share: float) -> None:
    ours, full = trained(Trainable(parts), sizes), trained(Trainable())
    for (path, weight), whole, before in zip(
        leaf_paths(ours.state.model), jax.tree.leaves(full.state.model), jax.tree.leaves(training.model()), strict=True
    ):
        if QWEN2_5_VL.part_of(path) in parts:
            gradient, wanted = np.asarray(weight) - before, np.asarray(whole) - before
            assert np.abs(gradient - wanted).max() <= 1e-4 * np.abs(wanted).max() > 0, path
        else:
            assert np.asarray(weight).tobytes() == np.asarray(before).tobytes(), path
    assert ours.flops < share * full.flops


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0)], ids=["weights", "adapters"])
def test_what_is_frozen_is_small_has_no_moments_and_resumes(lora: LoraConfig | None, tmp_path: Path) -> None:
    """Over four devices and in two micro-batches; adapters need two steps, as at first one of their factors is 0."""
    trainable = Trainable(("merger", "decoder"), "bfloat16", lora)
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])

    def learns(path: str) -> bool:
        return QWEN2_5_VL.part_of(path) in trainable.parts and (lora is None or "/lora/" in path)

    optimizer = make_optimizer(OptimizerConfig(1e-3), steps=3)
    batch = jax.device_put(training.make_batch(training.shape(4)), batch_sharding(mesh))
    first = restart(training.copy(), optimizer, mesh, ShardingRules(), trainable)
    given: Any = {"trainable": trainable, "shardings": jax.tree.map(lambda leaf: leaf.sharding, first)}
    step: Any = make_train_step(SFT(), optimizer, jnp.asarray(training.BANNED), mesh=mesh, micro_batches=2, **given)
    for path, leaf in leaf_paths(first.model):
        if "/lora/" in path:
            assert leaf.addressable_shards[0].data.size == leaf.size // 2, path
    before = [(path, np.asarray(leaf)) for path, leaf in leaf_paths(first.model)]
    learnt = sum(leaf.size for path, leaf in before if learns(path))
    # Two moments, and two counts of training.
    assert sum(leaf.size for leaf in jax.tree.leaves(first.opt_state)) == 2 * learnt + 2
    state, _ = step(first, batch)
    with_checkpoint = Checkpointer(tmp_path)
    with_checkpoint.save(1, state, {})
    with_checkpoint.wait()
    found = with_checkpoint.restore(state)
    with_checkpoint.close()
    assert found is not None
    state, _ = step(state, batch)
    restored, _ = step(found[0], batch)
    for (path, ours), again in zip(leaf_paths(state), jax.tree.leaves(restored), strict=True):
        assert ours.dtype == again.dtype and np.asarray(ours).tobytes() == np.asarray(again).tobytes(), path
    for (path, old), new in zip(before, jax.tree.leaves(state.model), strict=True):
        frozen = not learns(path)
        assert new.dtype == (jnp.bfloat16 if frozen else jnp.float32), path
        assert (old.tobytes() == np.asarray(new).tobytes()) == frozen, path


@pytest.mark.slow
def test_stages_of_adapters_leave_them_and_a_merged_model(tmp_path: Path) -> None:
    """Supervised, and by play with merged weights, beside a reference."""
    config = micro.get_config()
    adapters = dict(train=("decoder",), lora=dict(rank=2, alpha=4.0))
    config.stages.sft.update(start="warmup", steps=2, probe_every=2, probe_samples=2, **adapters)
    config.stages.grpo.update(steps=2, **adapters)
    config.stages.grpo.objective.update(entropy_coefficient=0.1, kl_coefficient=0.1)
    for stage in ("sft", "grpo"):
        config.stages[stage].optimizer.update(learning_rate=0.1)
    Run(Recipe.from_config(config), tmp_path).train()
    assert "probe/reward/mean" in (tmp_path / "sft" / "metrics.jsonl").read_text()
    kl = [json.loads(line)["actor/kl"] for line in (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert kl[0] < 1e-5 < kl[1]  # the reference is what it started from
    for start, stage in (("warmup", "sft"), ("sft", "grpo")):
        before, after = tmp_path / start / "model", tmp_path / stage / "model"
        theirs: Any = PeftModel.from_pretrained(
            Qwen2_5_VLForConditionalGeneration.from_pretrained(before, dtype="float32"), after / "adapter"
        )
        end = theirs.generation_config.eos_token_id
        assert end is not None and json.loads((after / "generation_config.json").read_text())["eos_token_id"] == end
        assert theirs.peft_config["default"].base_model_name_or_path == str(before)
        theirs.merge_and_unload().save_pretrained(tmp_path / "theirs")
        first, ours, wanted = (load_file(place / "model.safetensors") for place in (before, after, tmp_path / "theirs"))
        changed = {name for name in first if not np.array_equal(first[name], ours[name])}
        assert changed == {name for name in first if name.startswith("model.layers.") and name.endswith("proj.weight")}
        assert {tensor.dtype.name for tensor in ours.values()} == {"float32"}  # also of frozen weights, which are bf16
        for name in ours:
            np.testing.assert_allclose(ours[name], wanted[name], atol=1e-6, err_msg=name)
