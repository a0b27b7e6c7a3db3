"""Tokens that end and pad what a model writes go out of a checkpoint as they came in."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from safetensors import safe_open
from transformers import AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from tests.kit import tiny
from tests.kit.files import write_files
from vitar_jax.errors import CheckpointError
from vitar_jax.models.generation import Generation
from vitar_jax.models.pretrained import leaf_paths, load_pretrained, save_pretrained
from vitar_jax.models.registry import FAMILIES, load_config

FILE = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("source")
    tiny.pretrained()[0].save_pretrained(directory)
    (directory / FILE).unlink(missing_ok=True)
    return directory


def rewritten(source: Path, target: Path, ids: dict[str, Any], file: dict[str, Any] | None, *, flat: bool = False) -> Path:
    """Copies a checkpoint. Its config.json has only the given ids, and its generation_config.json is replaced."""
    config = json.loads((source / "config.json").read_text())
    if flat:
        config = config.pop("text_config") | {"rope_theta": 1e4, "use_cache": True} | config
    section = config if flat else config["text_config"]
    for name in IDS:
        section.pop(name, None)
    section |= ids
    files = {"config.json": json.dumps(config), "model.safetensors": (source / "model.safetensors").read_bytes()}
    return write_files(target, files | ({} if file is None else {FILE: json.dumps(file)}))


QWENS = {
    "bos_token_id": 3,
    "pad_token_id": 3,
    "do_sample": True,
    "eos_token_id": [392, 3],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.37.0",
}


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize(
    "ids, file, stops",
    [
        ({"bos_token_id": 3, "eos_token_id": 392}, QWENS, (392, 3)),
        ({"eos_token_id": 392}, {"do_sample": False}, ()),  # the file goes before config.json
        ({"eos_token_id": 392, "pad_token_id": 5}, None, (392,)),
        ({"eos_token_id": [392, 3], "pad_token_id": None}, None, (392, 3)),
        ({"eos_token_id": None, "bos_token_id": None}, None, ()),
        ({"eos_token_id": None}, {"eos_token_id": 392}, (392,)),
        ({}, None, ()),
    ],
)
def test_what_transformers_reads_is_the_same_before_and_after(
    ids: dict[str, Any], file: dict[str, Any] | None, stops: tuple[int, ...], flat: bool, source: Path, tmp_path: Path
) -> None:
    before, after = rewritten(source, tmp_path / "in", ids, file, flat=flat), tmp_path / "out"
    assert load_config(before).generation.stop_ids == stops
    save_pretrained(load_pretrained(before), after)
    assert load_config(after).generation.stop_ids == stops
    assert (json.loads((after / FILE).read_text()) if (after / FILE).exists() else None) == file
    for name in IDS:
        was, now = (getattr(AutoConfig.from_pretrained(folder).get_text_config(), name) for folder in (before, after))
        assert now == ((file or {}).get(name) if was is None else was), name
        assert ids.get(name) is None or json.loads((after / "config.json").read_text())[name] == ids[name]
    read = [generation_of(folder) for folder in (before, after)]
    assert [getattr(read[0], name) for name in IDS] == [getattr(read[1], name) for name in IDS]


def generation_of(folder: Path) -> GenerationConfig:
    """As `from_pretrained` of a model reads it."""
    if (folder / FILE).exists():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(
    "ids, file, words",
    [
        ({"eos_token_id": "<|im_end|>"}, None, "config.json: eos_token_id: got '<|im_end|>'"),
        ({"eos_token_id": [392, None, True]}, None, "config.json: eos_token_id: got True"),
        ({"pad_token_id": [3]}, None, r"config.json: pad_token_id: got [3]"),
        ({}, {"eos_token_id": [392, -1]}, f"{FILE}: eos_token_id: got -1"),
        ({}, {"bos_token_id": 1.5}, f"{FILE}: bos_token_id: got 1.5"),
    ],
)
def test_what_is_no_token_is_refused(
    ids: dict[str, Any], file: dict[str, Any] | None, words: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}.*{re.escape(words)}"):
        load_config(rewritten(source, tmp_path, ids, file))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_an_unreadable_file_is_named(text: str, source: Path, tmp_path: Path) -> None:
    rewritten(source, tmp_path, {}, None)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path))}/{FILE}"):
        load_config(tmp_path)


def test_other_stops_take_the_place_of_the_sources() -> None:
    qwens = Generation({"eos_token_id": 392}, QWENS)
    assert qwens.stopping_at((3, 392)) is qwens
    changed = qwens.stopping_at((392, 7, 392))
    assert changed.stop_ids == (392, 7)
    assert changed.file == QWENS | {"eos_token_id": [392, 7]}
    assert changed.for_config() == {"eos_token_id": [392, 7], "bos_token_id": 3, "pad_token_id": 3}
    random = Generation({"bos_token_id": None, "pad_token_id": 3})
    assert random.stopping_at([392]).file == {"eos_token_id": 392, "pad_token_id": 3}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_writes_the_ids_where_transformers_reads_them(name: str, tmp_path: Path) -> None:
    config = dataclasses.replace(next(iter(FAMILIES[name].sizes.values())), generation=Generation({"eos_token_id": 392}, QWENS))
    written = config.to_hf()
    # transformers reads Sa2VA with code of its own, which builds on its Qwen3-VL.
    known = {"model_type": "qwen3_vl"} if name == "sa2va_chat" else {}
    write_files(tmp_path, {"config.json": json.dumps(written | known)})
    read = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert written["model_type"] == name and [getattr(read, name) for name in IDS] == [3, 392, 3]


def test_the_file_of_an_older_checkpoint_goes_with_it(source: Path, tmp_path: Path) -> None:
    save_pretrained(load_pretrained(rewritten(source, tmp_path / "in", {}, QWENS)), tmp_path / "out")
    assert (tmp_path / "out" / FILE).exists()
    save_pretrained(load_pretrained(source), tmp_path / "out")
    assert not (tmp_path / "out" / FILE).exists()


# Types


@pytest.mark.slow
@pytest.mark.parametrize("merged, dtype", [("q_proj", "float32"), ("none", "bfloat16")])
def test_all_tensors_have_the_type_that_the_config_says(merged: str, dtype: str, tmp_path: Path) -> None:
    """Adapters are merged in fp32 into some kernels of a model that is frozen in bf16."""
    model = tiny.pretrained()[1]
    cast = [leaf if merged in path else leaf.astype(jnp.bfloat16) for path, leaf in leaf_paths(model)]
    save_pretrained(jax.tree.unflatten(jax.tree.structure(model), cast), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {{"float32": "F32"}.get(dtype, "BF16")}
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == dtype  # as transformers 5 and 4 spell it
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    assert str(theirs.dtype) == f"torch.{dtype}"


def test_a_url_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="gs://bucket/model: cannot write to a URL"):
        save_pretrained(tiny.pretrained()[1], "gs://bucket/model")
    assert not list(tmp_path.iterdir())
