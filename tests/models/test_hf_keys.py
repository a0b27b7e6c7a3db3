"""Keys of config.json: each key of transformers' class is read, fixed or ignored; values that we do not compute are refused."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, Qwen2_5_VLConfig

from tests.kit import tiny
from tests.kit.files import write_files
from vitar_jax.errors import CheckpointError
from vitar_jax.models.hf_keys import Keys
from vitar_jax.models.qwen2_5_vl import hf_keys
from vitar_jax.models.qwen2_5_vl.config import _TEXT_DEFAULTS, _VISION_DEFAULTS
from vitar_jax.models.registry import config_from_hf, load_config

FORMS = ("nested", "flat")
SECTIONS = {"text_config": hf_keys.TEXT, "vision_config": hf_keys.VISION, "": hf_keys.TOP}
Json = dict[str, Any]


def written(form: str) -> Json:
    """A config as transformers writes it, or as the published files have it."""
    hf = json.loads(tiny.hf_config().to_json_string(use_diff=False))
    if form == "nested":
        return hf
    text = {key: value for key, value in hf.pop("text_config").items() if key not in ("model_type", "rope_parameters")}
    rope = {"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    return text | rope | hf


def section_of(hf: Json, name: str) -> Json:
    return hf.get(name, hf) if name else hf


@pytest.mark.parametrize("name", SECTIONS)
def test_the_table_has_every_key_of_transformers(name: str) -> None:
    theirs = Qwen2_5_VLConfig()
    part: PreTrainedConfig = getattr(theirs, name) if name else theirs
    fields = {field.name for field in dataclasses.fields(part)}  # type: ignore[arg-type]
    assert (fields | part.to_dict().keys() | part.attribute_map.keys()) - SECTIONS[name].known == set()


@pytest.mark.parametrize("keys", [*SECTIONS.values(), hf_keys.ROPE, hf_keys.VISION_ROPE])
def test_no_key_is_listed_twice(keys: Keys) -> None:
    listed = [*keys.read, *keys.fixed, *(key for group in keys.ignored.values() for key in group)]
    assert len(listed) == len(set(listed))


def test_defaults_are_those_of_transformers() -> None:
    theirs = Qwen2_5_VLConfig()
    for ours, part in ((_TEXT_DEFAULTS, theirs.text_config), (_VISION_DEFAULTS, theirs.vision_config)):
        assert ours == {name: getattr(part, name) for name in ours}


def without(hf: Json, name: str) -> Iterator[tuple[str, Json]]:
    """The config without one key of a section, and with null there."""
    for key in section_of(hf, name):
        missing, null = copy.deepcopy(hf), copy.deepcopy(hf)
        del section_of(missing, name)[key]
        section_of(null, name)[key] = None
        yield f"{name}.{key} missing", missing
        yield f"{name}.{key} null", null


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_missing_key_is_refused_or_read_as_in_transformers(name: str, form: str) -> None:
    refused = 0
    for what, hf in without(written(form), name):
        try:
            ours = config_from_hf(copy.deepcopy(hf))
        except CheckpointError:
            refused += 1
            continue
        try:
            theirs = Qwen2_5_VLConfig(**hf).to_dict()
        except (StrictDataclassError, TypeError, ValueError, AttributeError):
            continue
        assert ours == config_from_hf(theirs), what
    assert refused


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SECTIONS)
def test_no_fixed_key_has_another_value(name: str, form: str) -> None:
    for key in SECTIONS[name].fixed:
        hf = written(form)
        section_of(hf, name)[key] = "another"
        with pytest.raises(CheckpointError, match=rf"{key}: got 'another'"):
            config_from_hf(hf)


@pytest.mark.parametrize("form", FORMS)
def test_an_ignored_or_unknown_key_changes_nothing(form: str) -> None:
    plain = config_from_hf(written(form))
    for name, keys in SECTIONS.items():
        hf = written(form)
        for key in (*(key for group in keys.ignored.values() for key in group), "of_somebody"):
            section_of(hf, name)[key] = "anything"
        assert config_from_hf(hf) == plain


def change(name: str, **values: Any) -> Callable[[Json], None]:
    return lambda hf: section_of(hf, name).update(values)


def rope(name: str = "text_config", key: str = "rope_scaling", **values: Any) -> Callable[[Json], None]:
    return change(name, **{key: {"mrope_section": [2, 3, 3]} | values})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "damage, key",
    [
        (rope(type="yarn", factor=4.0), "rope_scaling.type: got 'yarn'"),
        (rope(rope_type="yarn", factor=4.0), "rope_scaling.rope_type: got 'yarn'"),
        (rope(key="rope_parameters", rope_type="llama3"), "rope_parameters.rope_type: got 'llama3'"),
        (rope(key="rope_parameters", rope_type="dynamic"), "rope_parameters.rope_type: got 'dynamic'"),
        (rope(type="mrope", rope_type="linear"), "rope_scaling.rope_type: got 'linear'"),
        (rope(name="", rope_type="yarn"), "rope_scaling.rope_type: got 'yarn'"),  # outside of text_config too
        (rope(partial_rotary_factor=0.5), "rope_scaling.partial_rotary_factor: got 0.5"),
        (rope(mrope_section=[2, 3, 4]), "mrope_section"),
        (rope(mrope_section=[2, 6]), "mrope_section"),
        (rope(mrope_section=[9, 9, -10]), "mrope_section"),
        (change("text_config", rope_theta=1e4, rope_parameters={"rope_theta": 2e4}), "rope_theta: got"),
        (change("text_config", rope_scaling="yarn"), "rope_scaling: got 'yarn'"),
        (change("vision_config", rope_parameters={"rope_type": "linear"}), "vision_config.rope_parameters.rope_type"),
        (change("text_config", partial_rotary_factor=0.5), "partial_rotary_factor"),
        (change("text_config", hidden_act="gelu"), "hidden_act"),
        (change("vision_config", hidden_act="quick_gelu"), "vision_config.hidden_act"),
        (change("text_config", use_sliding_window=True), "use_sliding_window"),
        (change("text_config", layer_types=["full_attention", "sliding_attention"]), "layer_types: got 'sliding_attention'"),
        (change("text_config", attention_bias=False), "attention_bias"),
        (change("text_config", head_dim=32), "head_dim: got 32"),
        (change("text_config", model_type="qwen3"), "model_type: got 'qwen3'"),
        (change("text_config", hidden_size="64"), "hidden_size: expected int, got '64'"),
        (change("text_config", num_hidden_layers=0), "num_hidden_layers: got 0"),
        (change("text_config", num_key_value_heads=3), "num_key_value_heads"),
        (change("text_config", rms_norm_eps=None), "rms_norm_eps: expected float, got None"),
        (change("vision_config", patch_size=[14, 14]), "vision_config.patch_size"),
        (change("vision_config", out_hidden_size=48), "vision_config.out_hidden_size: got 48"),
        (change("vision_config", window_size=60), "vision_config.window_size: got 60"),
        (change("vision_config", num_heads=3), "vision_config.num_heads: got 3"),
        (change("", quantization_config={"quant_method": "awq"}), "quantization_config"),
        (change("", image_token_id=None), "image_token_id: got None"),
        (change("", video_token_id="<|video_pad|>"), "video_token_id"),
        (change("", vision_start_token_id=tiny.VOCAB), "vision_start_token_id"),
        (change("", vision_end_token_id=-1), "vision_end_token_id"),
    ],
)
def test_an_unsupported_value_is_refused_by_file_and_key(
    damage: Callable[[Json], None], key: str, form: str, tmp_path: Path
) -> None:
    hf = written(form)
    damage(hf)
    write_files(tmp_path, {"config.json": json.dumps(hf)})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))}/config.json: .*{re.escape(key)}"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "same",
    [
        rope(type="mrope"),
        rope(rope_type="default", type="default"),
        rope(rope_type="default", factor=4.0),  # which the plain type does not read
        rope(key="rope_parameters", rope_type="mrope", rope_theta=1e4),
        change("text_config", hidden_act="swish", sliding_window=4096, attention_dropout=0.1),
        change("text_config", num_key_value_heads=2, use_sliding_window=None, pad_token_id=None),
        change("vision_config", num_hidden_layers=4, num_attention_heads=2, rms_norm_eps=1e-5),
    ],
)
def test_other_spellings_are_read(same: Callable[[Json], None]) -> None:
    plain = written("flat")
    changed = copy.deepcopy(plain)
    same(changed)
    assert config_from_hf(changed) == config_from_hf(plain)


def test_spellings_of_the_vision_tower_are_those_of_transformers() -> None:
    hf = written("nested")
    for ours, theirs in (("depth", "num_hidden_layers"), ("num_heads", "num_attention_heads")):
        hf["vision_config"][theirs] = hf["vision_config"].pop(ours)
    assert config_from_hf(hf) == config_from_hf(written("nested")) == config_from_hf(Qwen2_5_VLConfig(**hf).to_dict())


@pytest.mark.parametrize(
    "top, text, tied", [(True, False, True), (False, True, True), (None, True, True), (False, None, False)]
)
def test_a_tie_may_be_said_in_either_section(top: bool | None, text: bool | None, tied: bool) -> None:
    hf = written("nested")
    for section, value in ((hf, top), (hf["text_config"], text)):
        section.pop("tie_word_embeddings", None)
        section.update({} if value is None else {"tie_word_embeddings": value})
    assert config_from_hf(hf).text.tie_word_embeddings is tied
    assert Qwen2_5_VLConfig(**hf).tie_word_embeddings is tied
