"""SAM 2's config.json: each key of transformers' classes is read, fixed or ignored, and impossible sizes are named."""

import copy
import dataclasses
import json
from typing import Any

import pytest
from transformers import PreTrainedConfig
from transformers import Sam2Config as HFConfig

from tests.kit import tiny_sam2
from vitar_jax.errors import CheckpointError
from vitar_jax.models.hf_keys import Keys
from vitar_jax.models.sam2 import hf_keys
from vitar_jax.models.sam2.config import _CHANNELS, _FEATURE_SIZES, _TRUNK_DEFAULTS, HIERA_LARGE, DecoderConfig, Sam2Config

Json = dict[str, Any]
SECTIONS = {
    "": hf_keys.TOP,
    "vision_config": hf_keys.VISION,
    "vision_config.backbone_config": hf_keys.TRUNK,
    "prompt_encoder_config": hf_keys.PROMPT,
    "mask_decoder_config": hf_keys.DECODER,
}


def written() -> Json:
    return json.loads(tiny_sam2.hf_config().to_json_string(use_diff=False))


def section_of(hf: Any, path: str) -> Any:
    for name in path.split(".") if path else ():
        hf = hf[name] if isinstance(hf, dict) else getattr(hf, name)
    return hf


def changed(path: str, to: Any) -> Json:
    hf = written()
    place, _, key = path.rpartition(".")
    section_of(hf, place)[key] = to
    return hf


@pytest.mark.parametrize("name", SECTIONS)
def test_the_table_has_every_key_of_transformers(name: str) -> None:
    theirs: PreTrainedConfig = section_of(HFConfig(), name)
    fields = {field.name for field in dataclasses.fields(theirs)}  # type: ignore[arg-type]
    assert (fields | theirs.to_dict().keys() | theirs.attribute_map.keys()) - SECTIONS[name].known == set()


@pytest.mark.parametrize("keys", SECTIONS.values())
def test_no_key_is_listed_twice(keys: Keys) -> None:
    listed = [*keys.read, *keys.fixed, *(key for group in keys.ignored.values() for key in group)]
    assert len(listed) == len(set(listed))


def test_defaults_are_those_of_transformers() -> None:
    theirs = HFConfig()
    trunk = theirs.vision_config.backbone_config
    assert {name: list(value) for name, value in _TRUNK_DEFAULTS.items()} == {
        name: getattr(trunk, name) for name in _TRUNK_DEFAULTS
    }
    assert theirs.vision_config.backbone_channel_list == _CHANNELS
    assert theirs.vision_config.backbone_feature_sizes == _FEATURE_SIZES
    decoder = dataclasses.asdict(DecoderConfig())
    assert decoder == {name: getattr(theirs.mask_decoder_config, name) for name in decoder}
    # A file that says nothing is sam2-hiera-tiny.
    assert Sam2Config.from_hf({}).to_hf() == Sam2Config.from_hf(json.loads(theirs.to_json_string(use_diff=False))).to_hf()


@pytest.mark.parametrize("config", [HIERA_LARGE, Sam2Config.from_hf(written())], ids=["large", "tiny"])
def test_configs_survive(config: Sam2Config) -> None:
    hf = json.loads(json.dumps(config.to_hf()))
    assert Sam2Config.from_hf(hf) == config
    assert Sam2Config.from_hf(json.loads(HFConfig(**copy.deepcopy(hf)).to_json_string(use_diff=False))) == config


TRUNK = "vision_config.backbone_config."


@pytest.mark.parametrize(
    "path, to, message",
    [
        ("prompt_encoder_config.image_size", 1000, "got 1000, expected a multiple of 32"),
        ("prompt_encoder_config.image_size", [64, 96], r"got \[64, 96\], expected a multiple of 32"),
        ("prompt_encoder_config.image_size", 96, "image_size: got 64, expected 96"),
        ("vision_config.backbone_feature_sizes", [[1, 1]], r"got \[\[1, 1\]\], expected \[\[16, 16\]"),
        ("vision_config.backbone_channel_list", [1], r"got \[1\], expected \[32, 24, 16, 8\]"),
        ("vision_config.fpn_top_down_levels", [3], r"got \[\], expected \[2\]"),
        ("vision_config.fpn_hidden_size", 64, "got 64, expected 32"),
        ("vision_config.fpn_kernel_size", 3, "got 3, expected 1"),
        ("prompt_encoder_config.hidden_size", 64, "got 64, expected 32"),
        ("prompt_encoder_config.mask_input_channels", 6, "got 6, expected a multiple of 4"),
        ("mask_decoder_config.hidden_size", 36, "got 36, expected a multiple of 8"),
        ("mask_decoder_config.num_attention_heads", 3, "got 3, expected a divisor of 16"),
        ("mask_decoder_config.num_hidden_layers", 3, "got 3, expected 2"),
        ("mask_decoder_config.mlp_dim", 0, "got 0, expected more than 0"),
        (f"{TRUNK}embed_dim_per_stage", [8, 16, 24], "expected 4 numbers above 0"),
        (f"{TRUNK}embed_dim_per_stage", [8, 8, 24, 32], "expected another width in each stage"),
        (f"{TRUNK}num_attention_heads_per_stage", [1, 3, 2, 4], "expected divisors of embed_dim_per_stage"),
        (f"{TRUNK}blocks_per_stage", [1, 0, 5, 2], "expected 4 numbers above 0"),
        (f"{TRUNK}window_size_per_stage", [6, 4, 2, 2], "got 6 first, expected a divisor of the first map's side, 64 / 4"),
        (f"{TRUNK}window_size_per_stage", [8, 4, 3, 2], "expected even numbers before the last"),
        (f"{TRUNK}global_attention_blocks", [2], r"expected blocks below 9 without \[1, 2, 7\], which halve the map"),
        (f"{TRUNK}global_attention_blocks", [9], "expected blocks below 9"),
        (f"{TRUNK}window_positional_embedding_background_size", [0, 7], "expected numbers above 0"),
        (f"{TRUNK}hidden_act", "gelu_pytorch_tanh", "got 'gelu_pytorch_tanh', expected 'gelu'"),
        (f"{TRUNK}patch_stride", [8, 8], "got 8, expected 4"),
        (f"{TRUNK}num_query_pool_stages", 2, "got 2, expected 3"),
    ],
)
def test_impossible_sizes_are_named(path: str, to: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Sam2Config.from_hf(changed(path, to))
