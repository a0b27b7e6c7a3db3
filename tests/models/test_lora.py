"""Adapters: `peft` loads them onto Hugging Face's module and computes the same; so does the model they are merged into."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file

from tests.kit import parity, tiny, tiny_qwen3
from tests.kit.images import noise
from tests.kit.parity import TOLERANCE, relative_error
from vitar_jax.errors import ConfigError
from vitar_jax.models.lora import LoraConfig, add_lora, merge_lora, save_adapter
from vitar_jax.models.pretrained import leaf_paths, save_pretrained
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.weights import rollout_weights

PROCESSOR = tiny.processor(12)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "proj", "fc1", "fc2")
CONFIG = LoraConfig(rank=4, alpha=6.0, targets=PROJECTIONS)
QWEN3 = LoraConfig(rank=4, alpha=6.0, targets=(*PROJECTIONS[:9], "linear_fc1", "linear_fc2"))


def adapted(config: LoraConfig = CONFIG, kit: Any = tiny) -> Any:
    """As a run begins."""
    return add_lora(kit.pretrained()[1], config, jax.random.key(0), lambda path: True)


@cache
def learnt(config: LoraConfig = CONFIG, kit: Any = tiny) -> Any:
    """With adapters that change the model."""
    rng = np.random.default_rng(0)

    def move(path: Any, leaf: jax.Array) -> jax.Array:
        return jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32) if "lora" in jax.tree_util.keystr(path) else leaf

    return jax.tree_util.tree_map_with_path(move, adapted(config, kit))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(learnt(), CONFIG, folder, base="somewhere")
    return folder


def in_peft(folder: Path, kit: Any = tiny) -> PeftModel:
    base: Any = kit.hf_model(kit.hf_config())
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kit, config, using, adapters",
    [
        pytest.param(tiny, CONFIG, PROCESSOR, 7 * 3 + 5 * 4 + 2, id="qwen2_5_vl"),
        # The last number counts the mergers: one, and two for DeepStack, which are stacked.
        pytest.param(tiny_qwen3, QWEN3, tiny_qwen3.processor(), 7 * 3 + 4 * 4 + 2 * 3, id="qwen3_vl"),
    ],
)
def test_peft_computes_the_same_logits_and_gradients(
    kit: Any, config: LoraConfig, using: Processor, adapters: int, tmp_path: Path
) -> None:
    model = learnt(config, kit)
    save_adapter(model, config, tmp_path, base="somewhere")
    theirs = in_peft(tmp_path, kit)
    parts = [noise(112, 84, seed=1), "Which texture is it?", noise(84, 140, seed=2), "Look twice."]
    cases = parity.make_cases({"two images": [parts]}, using)
    batch = pack([cases[0].example], BatchShape(1, 1, 170, 5, using.size_classes[0], 170), using)
    expected = parity.run_theirs(theirs, cases, backward=True)
    with jax.default_matmul_precision("highest"):
        logits, gradient = parity.logits_and_gradient(model, batch, parity.batch_weights(batch, cases, tiny.VOCAB))
        without = parity.forward(kit.pretrained()[1], batch)
    bin_, row, span = parity.places(batch, cases)["two images"]
    assert relative_error(np.asarray(logits)[bin_, row, span], expected["two images"]) <= TOLERANCE
    assert relative_error(np.asarray(without)[bin_, row, span], expected["two images"]) >= parity.BROKEN

    wanted = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitar_jax.models.lora.write_tensors", lambda path, entries: found.update({e.name: e for e in entries}))
        save_adapter(gradient, config, tmp_path / "unused", base="")
    assert found.keys() == wanted.keys() and len(found) == 2 * adapters
    for name, entry in found.items():
        ours = entry.leaf if entry.layer is None else entry.leaf[entry.layer]
        assert relative_error(np.asarray(ours).T, wanted[name]) <= TOLERANCE, name


@pytest.mark.slow
def test_a_merged_model_is_what_peft_merges(saved: Path, tmp_path: Path) -> None:
    save_pretrained(merge_lora(learnt()), tmp_path)
    theirs: Any = in_peft(saved).merge_and_unload()
    theirs.save_pretrained(tmp_path / "theirs")
    ours, wanted = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_peft_finds_every_adapter(saved: Path) -> None:
    """None is left as peft would draw it, and none of the file's is left over."""
    theirs = in_peft(saved)
    stored = load_file(saved / "adapter_model.safetensors")
    inside = {n.replace(".default", ""): p for n, p in theirs.named_parameters() if ".lora_" in n}
    assert stored.keys() == inside.keys()
    assert all(torch.equal(inside[name].detach(), torch.tensor(values)) for name, values in stored.items())


@pytest.mark.slow
def test_rollout_sees_merged_weights() -> None:
    views = [rollout_weights(model) for model in (learnt(), merge_lora(learnt()), tiny.pretrained()[1])]
    assert jax.tree.structure(views[0]) == jax.tree.structure(views[2])
    ours, merged, plain = map(jax.tree.leaves, views)
    assert all(np.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(ours, merged, strict=True))
    assert sum(not np.allclose(a, b, atol=1e-3) for a, b in zip(ours, plain, strict=True)) == 7 * 3 + 5 + 2


@pytest.mark.slow
def test_at_first_an_adapter_adds_nothing() -> None:
    model = adapted()
    for path, leaf in leaf_paths(model):
        if path.endswith("/lora/b"):
            assert not np.any(leaf), path
        elif path.endswith("/lora/a"):
            bound = leaf.shape[-2] ** -0.5
            assert 0.9 * bound < np.abs(leaf).max() <= bound and abs(np.mean(leaf)) < 0.2 * bound, path
            assert leaf.ndim == 2 or not np.array_equal(leaf[0], leaf[1]), path
    for ours, plain in zip(jax.tree.leaves(merge_lora(model)), jax.tree.leaves(tiny.pretrained()[1]), strict=True):
        assert np.array_equal(ours, plain)


def test_a_rank_is_one_at_least() -> None:
    with pytest.raises(ConfigError, match="lora.rank: got 0"):
        LoraConfig(rank=0, alpha=1.0)


def test_a_target_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="lora.targets: .* named fc1"):
        add_lora(tiny.pretrained()[1], CONFIG, jax.random.key(0), lambda path: "merger/fc1" not in path)
