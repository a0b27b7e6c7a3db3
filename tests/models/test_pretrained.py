"""Weights and configs: to Hugging Face's files and back, byte for byte; files that do not fit are named."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.kit import tiny
from tests.kit.files import write_files
from tests.kit.images import noise
from tests.kit.processes import bytes_read
from vitar_jax.errors import CheckpointError
from vitar_jax.models import safetensors_files
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.models.registry import config_from_hf
from vitar_jax.models.safetensors_files import TensorWriter
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, shardings

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCAB = tiny.VOCAB
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `transformers` writes it."""
    folder = tmp_path_factory.mktemp("published")
    tiny.pretrained(tie=request.param)[0].save_pretrained(folder)
    return folder


def published_again(published: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a folder with other tensors."""
    tensors = change(load_file(published / WEIGHTS))
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text((published / "config.json").read_text())
    return folder


def test_weights_survive_byte_for_byte(published: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(published), tmp_path)
    theirs, ours = load_file(published / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name


def test_bf16_weights_survive_byte_for_byte(published: Path, tmp_path: Path) -> None:
    halves, again = tmp_path / "bf16", tmp_path / "again"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(published, dtype=torch.bfloat16)
    model.save_pretrained(halves)
    save_pretrained(load_pretrained(halves, dtype="bfloat16"), again)
    with safe_open(halves / WEIGHTS, "pt") as theirs, safe_open(again / WEIGHTS, "pt") as ours:
        assert set(ours.keys()) == set(theirs.keys())
        for name in theirs.keys():
            assert ours.get_tensor(name).dtype == torch.bfloat16
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name)), name


def test_transformers_loads_what_is_saved(published: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(published), tmp_path)
    first, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    second = Qwen2_5_VLForConditionalGeneration.from_pretrained(published)
    using = tiny.processor(12)
    image = using.process(noise(90, 70))
    token_ids = using.chat.render([("user", [using.tokens(image.grid_thw), "Which texture?"])], reply=True)
    with torch.no_grad():
        logits = [model.eval()(**tiny.hf_inputs(token_ids, [image])).logits for model in (first, second)]
    assert torch.equal(*logits)


def test_weights_in_several_files_are_read(published: Path, tmp_path: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(published)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for ours, whole in zip(
        jax.tree.leaves(load_pretrained(tmp_path)), jax.tree.leaves(load_pretrained(published)), strict=True
    ):
        assert np.array_equal(ours, whole)


@pytest.mark.slow
@pytest.mark.parametrize("data, fsdp, tensor", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_parts_are_read_onto_their_devices(data: int, fsdp: int, tensor: int, published: Path) -> None:
    whole = load_pretrained(published)
    spread = shardings(whole, make_mesh(data, fsdp, tensor), ShardingRules())
    for ours, target, expected in zip(
        *map(jax.tree.leaves, (load_pretrained(published, shardings=spread), spread, whole)), strict=True
    ):
        assert ours.sharding == target
        assert all(np.array_equal(part.data, np.asarray(expected)[part.index]) for part in ours.addressable_shards)


def test_a_part_that_several_devices_hold_is_read_once(published: Path) -> None:
    spread = shardings(load_pretrained(published), make_mesh(data=8, fsdp=1), ShardingRules())
    load_pretrained(published, shardings=spread)  # from here on nothing is imported
    before = bytes_read()
    load_pretrained(published, shardings=spread)
    stored = (published / WEIGHTS).stat().st_size
    assert stored < bytes_read() - before < 1.1 * stored


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_of_several_types_are_cast(dtype: str, published: Path, tmp_path: Path) -> None:
    """As torch casts: to the nearest, halves to even."""
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    with safe_open(published / WEIGHTS, "pt") as stored:
        mixed = {name: stored.get_tensor(name).to(kinds[i % 4]) for i, name in enumerate(sorted(stored.keys()))}
    torch_save_file(mixed, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    save_pretrained(load_pretrained(tmp_path, dtype=dtype), tmp_path / "ours")
    with safe_open(tmp_path / "ours" / WEIGHTS, "pt") as ours:
        for name, tensor in mixed.items():
            assert torch.equal(ours.get_tensor(name), tensor.to(getattr(torch, dtype))), name


def test_names_of_the_model_in_memory_are_read_too(published: Path, tmp_path: Path) -> None:
    """transformers 5 nests the towers; some tools write these names."""

    def nested(tensors: Tensors) -> Tensors:
        towers = {"model.": "model.language_model.", "visual.": "model.visual."}
        return {
            next((new + name[len(old) :] for old, new in towers.items() if name.startswith(old)), name): tensor
            for name, tensor in tensors.items()
        }

    again = load_pretrained(published_again(published, tmp_path, nested))
    for ours, whole in zip(jax.tree.leaves(again), jax.tree.leaves(load_pretrained(published)), strict=True):
        assert np.array_equal(ours, whole)


def test_a_tied_head_in_the_file_is_passed_over(tmp_path: Path) -> None:
    tiny.pretrained(tie=True)[0].save_pretrained(tmp_path)
    whole = load_pretrained(tmp_path)

    def with_head(tensors: Tensors) -> Tensors:
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}

    again = load_pretrained(published_again(tmp_path, tmp_path, with_head))
    assert again.lm_head is None
    assert np.array_equal(again.head(), whole.head())


@pytest.mark.parametrize("rows", [VOCAB, VOCAB - 1])
def test_a_head_that_differs_from_the_tied_table_is_refused(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5 keeps it, and says so; transformers 4 drops it. One value in any block of rows is enough."""
    monkeypatch.setattr(safetensors_files, "BLOCK", 64 * 4 * 100)  # 100 rows
    tiny.pretrained(tie=True)[0].save_pretrained(tmp_path)

    def with_head(tensors: Tensors) -> Tensors:
        head = tensors["model.embed_tokens.weight"][:rows].copy()
        head[250, 3] += rows == VOCAB
        return tensors | {"lm_head.weight": head}

    published_again(tmp_path, tmp_path, with_head)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path))}/{WEIGHTS}: lm_head.weight differs"):
        load_pretrained(tmp_path)
    if rows == VOCAB:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
        theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path).lm_head.weight.detach().numpy()
        assert np.array_equal(load_pretrained(tmp_path).head().T, theirs)


def test_two_tensors_for_one_parameter_are_refused(published: Path, tmp_path: Path) -> None:
    """One under its published name and one under the name in memory."""

    def doubled(tensors: Tensors) -> Tensors:
        return tensors | {"model.language_model.norm.weight": tensors["model.norm.weight"] + 1}

    with pytest.raises(CheckpointError, match="norm.weight are one tensor"):
        load_pretrained(published_again(published, tmp_path, doubled))


@pytest.mark.parametrize("old_shards", [False, True])
def test_a_single_file_goes_before_an_index(old_shards: bool, tmp_path: Path) -> None:
    """transformers leaves the index of an older checkpoint that it replaces by one file."""
    older, newer = (tiny.hf_model(tiny.hf_config(), seed) for seed in (1, 2))
    older.save_pretrained(tmp_path, max_shard_size="200KB")
    shards = {file: file.read_bytes() for file in tmp_path.glob("model-*.safetensors")}
    newer.save_pretrained(tmp_path)
    if old_shards:
        for file, content in shards.items():
            file.write_bytes(content)
    assert (tmp_path / INDEX).exists()
    read = np.asarray(load_pretrained(tmp_path).model.embed_tokens[...])
    assert np.array_equal(read, newer.model.language_model.embed_tokens.weight.detach().numpy())


def test_all_that_does_not_fit_is_one_error(published: Path, tmp_path: Path) -> None:
    def damaged(tensors: Tensors) -> Tensors:
        tensors = dict(tensors)
        del tensors["model.layers.1.self_attn.q_proj.bias"], tensors["visual.merger.mlp.2.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros(1, np.float32)
        tensors["model.norm.weight"] = np.zeros(63, np.float32)
        tensors["visual.patch_embed.proj.weight"] = tensors["visual.patch_embed.proj.weight"].reshape(32, -1)
        return tensors

    folder = published_again(published, tmp_path, damaged)
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(folder)
    message = str(raised.value)
    assert message.startswith(f"{folder}: 5 tensors")
    for part in (
        "missing model.layers.1.self_attn.q_proj.bias",
        "missing visual.merger.mlp.2.weight",
        "extra model.layers.9.mlp.up_proj.weight",
        "misshapen model.norm.weight: (63,) in the file, (64,) in the model",
        "misshapen visual.patch_embed.proj.weight: (32, 1176) in the file, (32, 3, 2, 14, 14) in the model",
    ):
        assert part in message


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": None},
        {"config.json": None, WEIGHTS: "not safetensors"},
        {"config.json": None, "pytorch_model.bin": ""},
        {"config.json": None, "model.safetensors.index.json": "not JSON"},
        {"config.json": None, "model.safetensors.index.json": "[]"},
        {"config.json": None, "model.safetensors.index.json": '{"weight_map": {"a": 3}}'},
        {"config.json": None, "model.safetensors.index.json": '{"metadata": {}}'},
        {"config.json": None, "model.safetensors.index.json": '{"weight_map": {"a": "gone.safetensors"}}'},
        {"config.json": "[]", WEIGHTS: ""},
        {"config.json": "{", WEIGHTS: ""},
    ],
)
def test_files_that_cannot_be_read_are_named(files: dict[str, str | None], tmp_path: Path) -> None:
    config = json.dumps(config_from_hf(tiny.hf_config().to_dict()).to_hf())
    write_files(tmp_path, {name: config if text is None else text for name, text in files.items()})
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        load_pretrained(tmp_path)


# Several files


def test_several_files_survive_byte_for_byte(published: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(published), tmp_path, max_shard_bytes=200_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 3 and [file.name for file in files] == [
        f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    parts = [load_file(file) for file in files]
    sizes = [sum(tensor.nbytes for tensor in part.values()) for part in parts]
    assert all(size <= 200_000 or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    ours, theirs = {name: tensor for part in parts for name, tensor in part.items()}, load_file(published / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].tobytes() == tensor.tobytes(), name
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: file.name for file, part in zip(files, parts, strict=True) for name in part}


def test_transformers_loads_several_files(published: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(published), tmp_path, max_shard_bytes=200_000)
    ours, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(published).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.slow
def test_a_spread_model_is_saved_whole(published: Path, tmp_path: Path) -> None:
    spread = shardings(load_pretrained(published), make_mesh(data=2, fsdp=2, tensor=2), ShardingRules())
    save_pretrained(load_pretrained(published, shardings=spread), tmp_path)
    theirs, ours = load_file(published / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(200_000, 10**9), (10**9, 200_000), (100_000, 200_000)])
def test_a_checkpoint_takes_the_place_of_another(before: int, after: int, published: Path, tmp_path: Path) -> None:
    model = load_pretrained(published)
    save_pretrained(jax.tree.map(lambda leaf: leaf + 1, model), tmp_path / "ours", max_shard_bytes=before)
    save_pretrained(model, tmp_path / "ours", max_shard_bytes=after)
    save_pretrained(model, tmp_path / "fresh", max_shard_bytes=after)
    ours, fresh = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("ours", "fresh"))
    assert ours == fresh


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["append", "rename", "write_text"])
def test_a_save_that_is_killed_leaves_nothing_that_looks_complete(
    call: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is reached: each call in turn is the last one made."""
    model = load_pretrained(published)
    owner = TensorWriter if call == "append" else Path
    real = getattr(owner, call)
    for last in range(100):
        made = iter(range(last))

        def once_more(*arguments: Any, made: Iterator[int] = made) -> Any:
            if next(made, None) is None:
                raise Killed
            return real(*arguments)

        directory = tmp_path / str(last)
        with monkeypatch.context() as patch:
            patch.setattr(owner, call, once_more)
            try:
                save_pretrained(model, directory, max_shard_bytes=200_000)
            except Killed:
                assert not (directory / "config.json").exists()
            else:
                assert last > 1
                break
    load_pretrained(directory)


def test_a_checkpoint_stands_until_another_is_written(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_pretrained(published)
    save_pretrained(model, tmp_path, max_shard_bytes=200_000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TensorWriter, "append", fail)
        save_pretrained(model, tmp_path)
    assert before.items() <= {file.name: file.read_bytes() for file in tmp_path.iterdir()}.items()
    save_pretrained(model, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "generation_config.json", WEIGHTS]


# Config


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_a_config_survives_transformers(tie: bool) -> None:
    config = config_from_hf(tiny.hf_config(tie=tie).to_dict())
    assert config.text.tie_word_embeddings == tie
    there = Qwen2_5_VLConfig(**config.to_hf())
    assert config_from_hf(there.to_dict()) == config
    assert config_from_hf(json.loads(json.dumps(config.to_hf()))) == config
