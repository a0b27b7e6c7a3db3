"""Model families by the `model_type` of their checkpoints. A new family is one module and one line of `_FAMILIES`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from vitar_jax.errors import CheckpointError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.family import Family
from vitar_jax.models.generation import GENERATION_FILE, Generation
from vitar_jax.models.qwen2_5_vl import QWEN2_5_VL
from vitar_jax.models.qwen3_vl import QWEN3_VL
from vitar_jax.models.sa2va import SA2VA
from vitar_jax.models.sa2va.model import Sa2VA
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.runtime.registry import Registry
from vitar_jax.runtime.remote import CheckpointFolder

_FAMILIES = (QWEN2_5_VL, QWEN3_VL, SA2VA)
DEFAULT_FAMILY = QWEN2_5_VL.model_type

FAMILIES: Registry[Family] = Registry("model family")
for _family in _FAMILIES:
    FAMILIES[_family.model_type] = _family


def family_of(config: ModelConfig) -> Family:
    """Returns the family of a configuration."""
    return FAMILIES[config.model_type]


def sizes() -> dict[str, ModelConfig]:
    """Returns the configurations of all published sizes, by name."""
    return {name: config for family in FAMILIES.values() for name, config in family.sizes.items()}


def config_from_hf(
    hf: Mapping[str, Any], generation_file: Mapping[str, Any] | None = None, **computation: Any
) -> ModelConfig:
    """Reads the dictionary in `config.json` of any family.

    Args:
      generation_file: The dictionary in `generation_config.json`, if the file exists.
      computation: Values of `dtype`, `remat` and `attention` of `ModelConfig`, and of `generation` instead of the files'.

    Raises:
      CheckpointError: If no family has this `model_type`, or the family cannot read the configuration.
    """
    model_type = str(hf.get("model_type"))
    if model_type not in FAMILIES:
        raise CheckpointError(f"model_type: got {model_type!r}, expected one of {', '.join(map(repr, FAMILIES))}")
    computation.setdefault("generation", Generation.from_hf(hf, generation_file))
    return FAMILIES[model_type].config.from_hf(hf, **computation)


def load_config(path: str | Path | CheckpointFolder, **computation: Any) -> ModelConfig:
    """Reads `config.json` and `generation_config.json` of a checkpoint, which may be anywhere that `load_pretrained` reads.

    Raises:
      CheckpointError: If the file cannot be read, or has a key that the family does not support. The message names both.
    """
    folder = CheckpointFolder.open(path, weights=False)
    hf = folder.read_json("config.json")
    generation = folder.read_json(GENERATION_FILE) if folder.exists(GENERATION_FILE) else None
    try:
        return config_from_hf(hf, generation, **computation)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.label('config.json')}: {error}") from error


def random_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    patch_filters: Literal["normal", "zero_mean"] = "normal",
    iou_head: Literal["normal", "zero"] = "normal",
) -> VisionLanguageModel:
    """Returns a model with random weights in fp32.

    Args:
      patch_filters: Initial patch embedding. "zero_mean" filters respond to contrast but hardly to brightness.
      iou_head: Initial last projection of the head that predicts each candidate's IoU, in a family that makes masks. With
        "zero", the predictions are equal, and every mask is the first candidate.
    """
    model = family_of(config).model(config, key=jax.random.key(seed))
    if patch_filters == "zero_mean":
        kernel = model.visual.patch_embed.kernel
        filters = kernel[...]
        brightness = jax.random.normal(jax.random.key(seed + 1), filters.shape[1:]) * 0.3 / filters.shape[0]
        kernel[...] = 2 * (filters - filters.mean(axis=0, keepdims=True)) + brightness
    if iou_head == "zero":
        assert isinstance(model, Sa2VA)
        kernel = model.sam2.mask_decoder.iou_prediction_head.proj_out.kernel
        kernel[...] = 0 * kernel[...]
    return model


def abstract_model(config: ModelConfig) -> Any:
    """Returns the model's shapes and types, without values."""
    return jax.eval_shape(lambda: random_model(config))
