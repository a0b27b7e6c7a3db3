"""Sa2VA's folders: sizes, weights and configs to Hugging Face's form and back, the parts that train, and what is refused."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import Sam2Config as HFSam2Config
from transformers import Sam2VideoConfig, Sam2VideoModel

from tests.kit import micro, tiny, tiny_qwen3, tiny_sa2va, tiny_sam2
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.trainable import Trainable
from vitar_jax.models.family import MASK_PARTS, PARTS
from vitar_jax.models.lora import LoraConfig
from vitar_jax.models.pretrained import leaf_paths, load_pretrained, save_pretrained
from vitar_jax.models.registry import abstract_model, config_from_hf, load_config
from vitar_jax.models.sa2va import SA2VA, SIZES
from vitar_jax.models.sa2va.config import Sa2VAConfig
from vitar_jax.models.sam2.config import HIERA_LARGE
from vitar_jax.models.sam2.model import ImageMaps
from vitar_jax.models.sam2.pretrained import load_sam2
from vitar_jax.parallel.mesh import ShardingRules, make_mesh, shardings

# Of the published folders, which count parameters and not buffers.
PARAMETERS = {"sa2va_qwen3_vl_2b": 2_666_774_834, "sa2va_qwen3_vl_4b": 5_057_072_434}
Tensors = dict[str, torch.Tensor]


abstract = cache(abstract_model)


def published_names(config: Sa2VAConfig) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the tensors of a model that we save."""
    found = {}
    for path, leaf in leaf_paths(abstract(config)):
        shape = leaf.shape[1:] if SA2VA.names.is_stacked(path) else leaf.shape
        for name in SA2VA.names.published(path, leaf.shape[0]):
            found[name] = SA2VA.names.stored_shape(path, shape)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    model = abstract(SIZES[name])
    buffer = model.sam2.shared_image_embedding.positional_embedding
    ours = sum(leaf.size for leaf in jax.tree.leaves(model)) - buffer.size
    with torch.device("meta"):
        video = Sam2VideoModel(
            Sam2VideoConfig(
                **{key: value for key, value in HIERA_LARGE.to_hf().items() if key.endswith("_config")},
                enable_occlusion_spatial_embedding=False,  # SAM 2.1's, as is the next
                enable_temporal_pos_encoding_for_object_pointers=False,
            )
        )
    image = ("vision_encoder.", "prompt_encoder.", "mask_decoder.", "no_memory_embedding")
    parts = {name: p.numel() for name, p in video.named_parameters() if not name.startswith(image)}
    assert sum(parts.values()) == sum(math.prod(shape) for _, shape in tiny_sa2va.video_parts())
    assert ours + sum(parts.values()) == PARAMETERS[name]


def test_names_are_the_original_ones() -> None:
    config = SIZES["sa2va_qwen3_vl_4b"]
    wanted = dict(tiny_sa2va.image_parts(HFSam2Config(**config.sam2.to_hf())))
    found = {
        name.removeprefix(tiny_sa2va.SAM2): shape
        for name, shape in published_names(config).items()
        if name.startswith(tiny_sa2va.SAM2)
    }
    assert len(wanted) == 743 and found == wanted


def test_the_video_parts_are_known_by_name() -> None:
    names = [f"{tiny_sa2va.SAM2}{name}" for name, _ in tiny_sa2va.video_parts()]
    assert len(names) == len(set(names)) == 157
    assert all(map(SA2VA.names.is_left_out, names))
    assert not any(map(SA2VA.names.is_left_out, published_names(SIZES["sa2va_qwen3_vl_4b"])))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sa2va.write(tmp_path_factory.mktemp("published"), tiny_sa2va.tensors(), files=3)


@pytest.mark.slow
def test_weights_survive_byte_for_byte(published: Path, tmp_path: Path) -> None:
    model = load_pretrained(published)
    save_pretrained(model, tmp_path)
    before = {name: tensor.numpy() for name, tensor in tiny_sa2va.tensors().items() if not SA2VA.names.is_left_out(name)}
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and len(before) < len(tiny_sa2va.tensors())
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape), name
        assert after[name].tobytes() == tensor.tobytes(), name
    assert load_config(tmp_path) == load_config(published) == model.config
    save_pretrained(load_pretrained(tmp_path), tmp_path / "again")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.slow
def test_each_device_reads_its_shards(tmp_path: Path) -> None:
    """Also of weights with more than two axes, from a local and from a remote folder, whose rows are resharded."""
    theirs, whole = tiny_sam2.pretrained("windows divide")
    theirs.save_pretrained(tmp_path)
    mesh = make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    remote = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        remote.pipe_file(f"/sam2/{file.name}", file.read_bytes())
    for place in (tmp_path, "memory://sam2"):
        sharded = load_sam2(place, shardings=shardings(whole, mesh, ShardingRules()))
        for (path, leaf), one in zip(leaf_paths(sharded), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(leaf, one, err_msg=path)


@pytest.mark.slow
def test_sam2_loads_alone_and_beside_what_videos_need(tmp_path: Path) -> None:
    """Also from the files of `Sam2VideoModel`, as published: the same weights."""
    theirs, ours = tiny_sam2.pretrained("windows divide")
    image = tiny_sam2.hf_config()
    video = Sam2VideoModel(
        Sam2VideoConfig(
            vision_config=image.vision_config,
            prompt_encoder_config=image.prompt_encoder_config.to_dict(),
            mask_decoder_config=image.mask_decoder_config.to_dict(),
            image_size=64,
            memory_attention_hidden_size=32,
            memory_attention_feed_forward_hidden_size=32,
            memory_attention_num_layers=1,
            memory_encoder_hidden_size=32,
            memory_encoder_output_channels=8,
            mask_downsampler_embed_dim=32,
            memory_fuser_embed_dim=32,
            memory_fuser_intermediate_dim=32,
            memory_attention_rope_feat_sizes=[4, 4],
        )
    )
    missing, unexpected = video.load_state_dict(theirs.state_dict(), strict=False)
    assert missing and not unexpected
    video.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
    loaded = load_sam2(tmp_path)
    assert loaded.config == ours.config
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(ours), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_language_model_is_qwen3_vl(published: Path) -> None:
    """The same decoder and tower as from Qwen3-VL's own folder, so their parity holds here too."""
    ours, language = load_pretrained(published), tiny_qwen3.pretrained(tie=False)[1]
    for name in ("visual", "model", "lm_head"):
        for one, other in zip(jax.tree.leaves(getattr(ours, name)), jax.tree.leaves(getattr(language, name)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_states_become_masks(published: Path) -> None:
    """By the published layers: Linear, ReLU, Linear, and SAM 2's decoder on the result."""
    model = load_pretrained(published)
    states = np.random.default_rng(0).normal(size=(2, 3, 48)).astype(np.float32)
    layers = [torch.nn.Linear(48, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32)]
    for i in (0, 2):
        layers[i].load_state_dict(
            {kind: tiny_sa2va.tensors()[f"text_hidden_fcs.{i}.{kind}"] for kind in ("weight", "bias")}
        )
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        prompts = torch.nn.Sequential(*layers)(torch.tensor(states))
        assert tiny_sam2.relative_error(model.bridge(jnp.asarray(states)), prompts) <= 1e-6


# Parts


def test_every_parameter_has_its_part() -> None:
    model = abstract(config_from_hf(tiny_sa2va.config()))
    parts: dict[str, set[str]] = {}
    for path, _ in leaf_paths(model):
        parts.setdefault(SA2VA.part_of(path), set()).add(path.split("/")[0])
    assert parts.keys() == {*PARTS, *MASK_PARTS}
    assert parts["bridge"] == {"bridge"} and parts["mask_decoder"] == parts["mask_encoder"] == {"sam2"}
    decoder = {path for path, _ in leaf_paths(model) if SA2VA.part_of(path) == "mask_decoder"}
    assert all(path.startswith("sam2/mask_decoder/") for path in decoder)


def test_frozen_parts_have_no_gradient_and_no_moments() -> None:
    """What the published recipe trains of masks: the bridge and the mask decoder."""
    trained = Trainable(("bridge", "mask_decoder"), frozen_dtype="bfloat16")
    model = abstract(config_from_hf(tiny_sa2va.config()))
    learnt, frozen = jax.eval_shape(lambda model: trained.split(trained.prepare(model)), model)
    names = {path for path, _ in leaf_paths(learnt)}
    assert names and all(path.startswith(("bridge/", "sam2/mask_decoder/")) for path in names)
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    moments = jax.eval_shape(make_optimizer(OptimizerConfig(learning_rate=1e-3), steps=10).init, learnt)
    assert len([leaf for leaf in jax.tree.leaves(moments) if leaf.ndim]) == 2 * len(names)


def test_masks_are_learnt_whole_beside_adapters() -> None:
    """The mask decoder has projections of the same names as the language model, and no adapters."""
    trained = Trainable(("decoder", "bridge", "mask_decoder"), lora=LoraConfig(rank=2, alpha=4))
    model = abstract(config_from_hf(tiny_sa2va.config()))
    learnt, _ = jax.eval_shape(lambda model: trained.split(trained.prepare(model)), model)
    names = {path for path, _ in leaf_paths(learnt)}
    adapters = {path for path in names if "/lora/" in path}
    assert len(adapters) == 2 * 7 and all(path.startswith("model/layers/") for path in adapters)
    parts = {path for path, _ in leaf_paths(model) if SA2VA.part_of(path) in ("bridge", "mask_decoder")}
    assert any("q_proj" in path for path in parts) and names == adapters | parts


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_have_the_type_of_computation(dtype: str) -> None:
    model = abstract_model(dataclasses.replace(config_from_hf(tiny_sa2va.config()), dtype=dtype))
    pixels = jax.ShapeDtypeStruct((2, 3, 64, 64, 3), jnp.uint8)
    maps = jax.eval_shape(lambda model, pixels: model.mask_maker.image_maps(pixels, dtype), model, pixels)
    assert {leaf.dtype for leaf in jax.tree.leaves(maps)} == {jnp.dtype(dtype)}
    assert [leaf.shape for leaf in jax.tree.leaves(maps)] == [(2, 3, 16, 16, 4), (2, 3, 8, 8, 8), (2, 3, 4, 4, 32)]
    rows = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), maps)
    states = jax.ShapeDtypeStruct((3, 5, 48), dtype)
    masks = jax.eval_shape(lambda model, maps, states: model.mask_maker.masks(maps, states), model, rows, states)
    assert (masks.logits.shape, masks.ious.shape, masks.logits.dtype) == ((3, 5, 3, 16, 16), (3, 5, 3), dtype)


def test_masks_are_frozen_unless_they_are_named() -> None:
    """Recipes without masks keep their meaning."""
    assert not {*Trainable().parts} & {*MASK_PARTS}
    with pytest.raises(ConfigError, match="mask_decoder"):
        Trainable(("decoder", "mask_decoder")).prepare(tiny_qwen3.pretrained()[1])


# Configs


def test_published_configs_stand_for_the_largest_sam2() -> None:
    hf = tiny_sa2va.config()
    del hf["sam2_config"]
    config = config_from_hf(hf)
    assert isinstance(config, Sa2VAConfig) and config.sam2 == HIERA_LARGE
    assert not config.text.tie_word_embeddings  # although the key outside text_config says so


@pytest.mark.parametrize("name", SIZES)
def test_configs_survive(name: str) -> None:
    assert config_from_hf(json.loads(json.dumps(SIZES[name].to_hf()))) == SIZES[name]


def recipe(family: str = "sa2va_chat", **sam2: Any) -> Any:
    """A recipe of random weights with a tiny SAM 2."""
    tiny_config = config_from_hf(tiny_sa2va.config())
    config: Any = micro.get_config()
    config.model = {"family": family, "sam2": dataclasses.asdict(tiny_config.sam2) | sam2}
    config.model.text, config.model.vision = (dataclasses.asdict(part) for part in (tiny_config.text, tiny_config.vision))
    return config


def chooses_first() -> Any:
    """A recipe of a model without masks that says how to choose between masks."""
    config = recipe("qwen3_vl")
    del config.model["sam2"]
    config.model.iou_head = "zero"
    return config


def test_a_recipe_has_sam2s_sizes() -> None:
    config = build.model_config(Recipe.from_config(recipe()))
    assert isinstance(config, Sa2VAConfig)
    wanted = config_from_hf(tiny_sa2va.config())
    assert (config.text, config.vision, config.sam2) == (wanted.text, wanted.vision, wanted.sam2)


@pytest.mark.slow
def test_a_head_that_starts_at_zero_always_chooses_the_first_candidate() -> None:
    config: Any = recipe()
    sizes = build.model_config(Recipe.from_config(config))
    usual = build.random_model(Recipe.from_config(config), sizes)
    config.model.iou_head = "zero"
    zero = build.random_model(Recipe.from_config(config), sizes)
    (changed,) = (
        path
        for (path, leaf), (_, other) in zip(leaf_paths(usual), leaf_paths(zero), strict=True)
        if not np.array_equal(leaf, other)
    )
    assert changed == "sam2/mask_decoder/iou_prediction_head/proj_out/kernel"
    rng = np.random.default_rng(0)
    width, side = zero.config.sam2.decoder.hidden_size, zero.config.sam2.image_size
    levels = ((side // 4, width // 8), (side // 8, width // 4), (side // 16, width))
    maps = ImageMaps(*(jnp.asarray(rng.normal(size=(2, rows, rows, depth)), jnp.float32) for rows, depth in levels))
    prompts = jnp.asarray(rng.normal(size=(2, 5, width)), jnp.float32)
    decode = jax.jit(lambda sam2: sam2.decode(maps, prompts))
    masks = decode(zero.sam2)
    np.testing.assert_array_equal(masks.best(), masks.logits[:, :, 0])
    assert jnp.ptp(masks.ious) == 0 and jnp.ptp(decode(usual.sam2).ious, axis=-1).min() > 0


@pytest.mark.parametrize(
    "config, message",
    [
        (recipe(image_size=100), "config.model.sam2.image_size: got 100, expected a multiple of 32"),
        (recipe(decoder={"hidden_size": 20}), "config.model.sam2.decoder.hidden_size: got 20, expected a multiple of 8"),
        (recipe(side=64), "config.model.sam2.side: no such key"),
        (recipe(family="qwen3_vl"), "config.model.sam2: the family qwen3_vl makes no masks; remove the key"),
        (chooses_first(), "config.model.iou_head: the family qwen3_vl makes no masks; remove the key"),
    ],
)
def test_impossible_sizes_of_a_recipe_are_named(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        Recipe.from_config(config)


# What is refused


def without(*prefixes: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("text_hidden_fcs."), r"has no bridge from \[SEG\] states to masks; expected tensors text_hidden_fcs\.\*$"),
        (
            without(f"{tiny_sa2va.SAM2}sam_mask_decoder."),
            r"has no mask decoder; expected tensors grounding_encoder\.sam2_model\.sam_mask_decoder\.\*$",
        ),
        (without("model.lm_head."), r"1 tensors do not fit:\n  missing model\.lm_head\.weight$"),
        (
            lambda tensors: tensors | {f"{tiny_sa2va.SAM2}memory_attention.layers.4.norm1.bias": torch.zeros(8)},
            r"1 tensors do not fit:\n  extra grounding_encoder\.sam2_model\.memory_attention\.layers\.4\.norm1\.bias$",
        ),
    ],
    ids=["bridge", "mask decoder", "head", "unknown"],
)
def test_weights_that_do_not_fit_are_named(change: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    folder = tiny_sa2va.write(tmp_path, change(tiny_sa2va.tensors()))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}: {message}"):
        load_pretrained(folder)


def changed(*keys: str, to: Any) -> dict[str, Any]:
    hf = tiny_sa2va.config()
    section = hf
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = to
    return hf


@pytest.mark.parametrize(
    "hf, message",
    [
        (
            changed("sam2_config", "prompt_encoder_config", "image_size", to=1000),
            "sam2_config.prompt_encoder_config.image_size: got 1000, expected a multiple of 32",
        ),
        (
            changed("text_config", "model_type", to="qwen2_5_vl_text"),
            "text_config.model_type: got 'qwen2_5_vl_text', expected 'qwen3_vl_text' or 'qwen3_vl'",
        ),
        (changed("sam2_config", to=7), "sam2_config: got 7, expected an object"),
    ],
)
def test_configs_that_do_not_fit_are_named(hf: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}"):
        config_from_hf(hf)


def test_a_tokenizer_without_seg_is_named() -> None:
    processor = tiny_qwen3.processor()
    config = config_from_hf(tiny_sa2va.config())
    with pytest.raises(CheckpointError, match=r"^tokenizer\.json: has no token \[SEG\]"):
        config.check_processor(tiny.chat(), processor.images)
