"""Qwen3-VL's files: sizes, weights and configs to Hugging Face's form and back, and keys that are refused."""

import dataclasses
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen3VLConfig as HFConfig
from transformers import Qwen3VLForConditionalGeneration

from tests.kit import micro, tiny_qwen3
from tests.kit.images import noise
from vitar_jax.errors import CheckpointError, ConfigError, DataError, ImageError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.hf_keys import Keys
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.models.qwen3_vl import SIZES, Qwen3VLConfig, TextConfig, VisionConfig, hf_keys
from vitar_jax.models.registry import abstract_model, config_from_hf
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, shardings
from vitar_jax.processing.chat import Video
from vitar_jax.processing.positions import SizeClass

PARAMETERS = {
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "qwen3_vl_8b": 8_767_123_696,
    "qwen3_vl_32b": 33_357_390_064,
}
SECTIONS = {"text_config": hf_keys.TEXT, "vision_config": hf_keys.VISION, "": hf_keys.TOP}
Json = dict[str, Any]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_model(SIZES[name])))
    assert count == PARAMETERS[name]
    with torch.device("meta"):
        theirs = Qwen3VLForConditionalGeneration(HFConfig(**SIZES[name].to_hf()))
    assert count == sum({id(p): p.numel() for p in theirs.parameters()}.values())


# Weights


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("published")
    tiny_qwen3.pretrained(tie=request.param)[0].save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_survive_byte_for_byte(dtype: str, published: Path, tmp_path: Path) -> None:
    """From several files to one, and back into transformers."""
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(published, dtype=getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    save_pretrained(load_pretrained(tmp_path / "theirs", dtype=dtype), tmp_path / "ours")
    before, after = tensors(tmp_path / "theirs"), tensors(tmp_path / "ours")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1 and before.keys() == after.keys()
    assert all(after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items())
    _, info = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.slow
def test_weights_are_read_from_a_url_onto_a_mesh(published: Path, tmp_path: Path) -> None:
    whole = load_pretrained(published)
    save_pretrained(whole, tmp_path, max_shard_bytes=200_000)
    root = f"/{uuid.uuid4().hex}"
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), root, recursive=True)
    try:
        assert len(memory.glob(f"{root}/*.safetensors")) > 1
        spread = shardings(jax.eval_shape(lambda: whole), make_mesh(2, 2, 2), ShardingRules())
        read = load_pretrained(f"memory:/{root}", shardings=spread)
    finally:
        memory.rm(root, recursive=True)
    for ours, expected, target in zip(*map(jax.tree.leaves, (read, whole, spread)), strict=True):
        np.testing.assert_array_equal(ours, expected)
        assert ours.sharding == target


def test_a_tied_head_in_the_file_is_accepted(tmp_path: Path) -> None:
    tiny_qwen3.pretrained(tie=True)[0].save_pretrained(tmp_path)
    whole, stored = load_pretrained(tmp_path), tensors(tmp_path)
    stored["lm_head.weight"] = stored["model.language_model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors")
    again = load_pretrained(tmp_path)
    assert again.lm_head is None and np.array_equal(again.head(), whole.head())


def test_what_does_not_fit_is_named_as_in_the_file(published: Path, tmp_path: Path) -> None:
    name = "model.visual.deepstack_merger_list.1.linear_fc1.weight"
    damaged = tensors(published)
    damaged["model.visual.merger.spare"] = damaged.pop(name)
    damaged["model.visual.pos_embed.weight"] = damaged["model.visual.pos_embed.weight"][:9].clone()
    save_file(damaged, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    with pytest.raises(CheckpointError, match="3 tensors do not fit") as caught:
        load_pretrained(tmp_path)
    assert all(part in str(caught.value) for part in (name, "model.visual.merger.spare", "model.visual.pos_embed.weight"))


# Configs


def written(form: str) -> Json:
    """A config as transformers 5 writes it, or as the published files have it."""
    hf = json.loads(tiny_qwen3.hf_config().to_json_string(use_diff=False))
    if form == "published":
        rope = hf["text_config"].pop("rope_parameters")
        hf["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        hf["vision_config"]["model_type"] = "qwen3_vl"
        del hf["vision_config"]["rope_parameters"]
    return hf


@pytest.mark.parametrize("form", ["transformers 5", "published"])
@pytest.mark.parametrize("tower", ["qwen3_vl", "qwen3_vl_vision"])
def test_either_type_of_the_tower_is_read_in_either_form(tower: str, form: str) -> None:
    hf = written(form)
    hf["vision_config"]["model_type"] = tower
    assert config_from_hf(hf) == config_from_hf(written("transformers 5"))


def test_both_forms_are_one_config_and_survive_transformers() -> None:
    ours = config_from_hf(written("transformers 5"))
    assert ours == config_from_hf(written("published")) == config_from_hf(HFConfig(**ours.to_hf()).to_dict())
    assert ours.text.num_attention_heads * ours.text.head_dim > ours.text.hidden_size
    for config in SIZES.values():
        assert config_from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", SECTIONS)
def test_the_table_has_every_key_of_transformers(name: str) -> None:
    part: Any = getattr(HFConfig(), name) if name else HFConfig()
    fields = {field.name for field in dataclasses.fields(part)}
    assert (fields | part.to_dict().keys() | part.attribute_map.keys()) - SECTIONS[name].known == set()


@pytest.mark.parametrize("keys", [*SECTIONS.values(), hf_keys.ROPE, hf_keys.VISION_ROPE])
def test_no_key_is_listed_twice(keys: Keys) -> None:
    listed = [*keys.read, *keys.fixed, *(key for group in keys.ignored.values() for key in group)]
    assert len(listed) == len(set(listed))


def change(name: str, **values: Any) -> Callable[[Json], None]:
    return lambda hf: (hf[name] if name else hf).update(values)


def rope(**values: Any) -> Callable[[Json], None]:
    return change("text_config", rope_parameters={"mrope_section": [4, 2, 2], "rope_theta": 1e4} | values)


def old_rope(**values: Any) -> Callable[[Json], None]:
    """The same settings as the published files have them."""
    rope = {"mrope_section": [4, 2, 2]} | values
    return change("text_config", rope_parameters=None, rope_theta=1e4, rope_scaling=rope)


@pytest.mark.parametrize(
    "damage, message",
    [
        (rope(mrope_interleaved=False), "mrope_interleaved: got False, expected True"),
        (rope(rope_type="yarn"), "rope_type: got 'yarn'"),
        (old_rope(mrope_interleaved=False), "rope_scaling.mrope_interleaved: got False, expected True"),
        (old_rope(type="yarn"), "rope_scaling.type: got 'yarn'"),
        (rope(mrope_section=[4, 2, 1]), "mrope_section: got .4, 2, 1., expected a sum of 8"),
        (change("text_config", attention_bias=True), "text_config.attention_bias: got True"),
        (change("text_config", hidden_act="gelu"), "text_config.hidden_act: got 'gelu'"),
        (change("text_config", num_key_value_heads=3), "text_config.num_attention_heads: got 4"),
        (change("vision_config", hidden_act="gelu"), "vision_config.hidden_act: got 'gelu'"),
        (change("vision_config", deepstack_visual_indexes=[0, 4]), "deepstack_visual_indexes: got .0, 4., .* from 0 to 3"),
        (change("vision_config", deepstack_visual_indexes=[1, 1]), "deepstack_visual_indexes: got .1, 1., expected different"),
        (change("vision_config", deepstack_visual_indexes=[0, 1, 2, 3]), "got 4 blocks, expected at most .* 3"),
        (change("vision_config", num_position_embeddings=26), "num_position_embeddings: got 26, expected a square"),
        (change("vision_config", out_hidden_size=32), "vision_config.out_hidden_size: got 32"),
        (change("", model_type="qwen3_vl_moe"), "model_type: got 'qwen3_vl_moe', expected one of 'qwen2_5_vl', 'qwen3_vl'"),
        (change("", model_type="qwen3_5"), "model_type: got 'qwen3_5', expected one of 'qwen2_5_vl', 'qwen3_vl'"),
        (change("", image_token_id=None), "image_token_id: got None"),
    ],
)
def test_wrong_input_is_named_before_weights_are_read(damage: Callable[[Json], None], message: str, tmp_path: Path) -> None:
    hf = written("transformers 5")
    damage(hf)
    (tmp_path / "config.json").write_text(json.dumps(hf))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


def test_a_video_is_refused() -> None:
    processor = tiny_qwen3.processor()
    token_ids = processor.chat.render([("user", [Video(4), "Where?"])], reply=True)
    with pytest.raises(DataError, match="got a video; videos are not supported for this model family"):
        processor.append_positions(0, token_ids, [(2, 4, 2)], [1.0])


def test_an_image_too_large_for_the_classes_is_refused() -> None:
    small = dataclasses.replace(tiny_qwen3.processor(), size_classes=(SizeClass(1, 64), SizeClass(1, 80)))
    with pytest.raises(ImageError, match=r"grid \(1, 8, 12\) needs 1 windows of 96 patches; .*: 1 x 64, 1 x 80"):
        small.process(noise(300, 200))


def test_a_recipe_names_each_size() -> None:
    for name, config in SIZES.items():
        recipe: Any = micro.get_config()
        recipe.model = {"size": name}
        assert build.model_config(Recipe.from_config(recipe)) == config


def test_windows_are_refused() -> None:
    with pytest.raises(ConfigError, match="size_classes: got 4 windows of 24 patches, expected one window of 96"):
        dataclasses.replace(tiny_qwen3.processor(), size_classes=(SizeClass(4, 24),))
    config = micro.get_config()
    config.model.family = "qwen3_vl"
    text, vision = dataclasses.asdict(SIZES["qwen3_vl_2b"].text), dataclasses.asdict(SIZES["qwen3_vl_2b"].vision)
    config.model.text, config.model.vision = text, vision | {"window_size": 56}
    with pytest.raises(ConfigError, match="config.model.vision.window_size: no such key"):
        Recipe.from_config(config)


# Memory


def temporaries(part: str, levels: int) -> int:
    """Returns the bytes of temporaries of a part's backward pass with `levels` of DeepStack."""
    rows, tokens, width = 4, 512, 128
    config = Qwen3VLConfig(
        text=TextConfig(512, width, 256, 36, 4, 2, head_dim=32, mrope_section=(6, 5, 5)),
        vision=VisionConfig(24, width, 256, 4, width, (5, 11, 17)[:levels], num_position_embeddings=64),
        remat="layer",
    )
    model = abstract_model(config)
    shape = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32)

    def decode(decoder: Any, embeddings: jax.Array, injections: list[jax.Array]) -> jax.Array:
        places, segments = jnp.zeros((rows, 3, tokens), jnp.int32), jnp.ones((rows, tokens), jnp.int32)
        return jnp.sum(decoder(embeddings, places, segments, injections) ** 2)

    def encode(tower: Any, pixels: jax.Array) -> jax.Array:
        return jnp.sum(tower(pixels, jnp.zeros((rows, 1, tokens, 2), jnp.int32), jnp.dtype("float32")) ** 2)

    pixels = jax.ShapeDtypeStruct((rows, tokens, config.vision.patch_width), jnp.float32)
    loss, arguments = {
        "decoder": (decode, (model.model, shape, [shape] * levels)),
        "tower": (encode, (model.visual, pixels)),
    }[part]
    gradient = jax.grad(loss, argnums=tuple(range(len(arguments))))
    return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("part", ["decoder", "tower"])
def test_deepstack_in_a_scan_takes_no_more_memory(part: str) -> None:
    """Outputs of inner blocks that were kept once per block, or a stack of layers that was cut, would exceed this."""
    assert temporaries(part, levels=3) <= 1.1 * temporaries(part, levels=0)
