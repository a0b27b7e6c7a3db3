"""Configuration of Qwen2.5-VL, read from and written to Hugging Face's `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vitar_jax.errors import CheckpointError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.rope import Rotary, mrope
from vitar_jax.processing.positions import VisionLayout


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Field names are Hugging Face's; `window_size` is in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    window_size: int = 112
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    tokens_per_second: int = 2
    rms_norm_eps: float = 1e-6  # fixed in Hugging Face's vision blocks
    rope_theta: float = 1e4

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of one patch."""
        return self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size

    @property
    def patch_width(self) -> int:
        """Number of values in one patch."""
        return math.prod(self.patch_shape)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. Field names are Hugging Face's."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 128_000

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def rotary(self, position_ids: jax.Array) -> Rotary:
        """Returns cosines and sines [*B, S, E/2] of position ids [*B, 3, S]."""
        return mrope(position_ids, self.head_dim, self.rope_theta, self.mrope_section)


@dataclasses.dataclass(frozen=True)
class Qwen2_5_VLConfig(ModelConfig):
    """A Qwen2.5-VL model."""

    model_type: ClassVar[str] = "qwen2_5_vl"

    text: TextConfig
    vision: VisionConfig

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **computation: Any) -> "Qwen2_5_VLConfig":
        """Reads the flat form of the published files or the nested one of transformers 5.

        Raises:
          CheckpointError: If the configuration has a feature that is not supported, or lacks a key.
        """
        for key in ("text_config", "vision_config"):
            if not isinstance(hf.get(key, {}), dict):
                raise CheckpointError(f"config.json: {key}: got {hf[key]!r}, expected an object")
        text = {**hf, **hf.get("text_config", {})}
        vision = _VISION_DEFAULTS | hf.get("vision_config", {})
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        if "in_chans" in vision:  # the spelling in the published files
            vision["in_channels"] = vision.pop("in_chans")
        text |= {
            "mrope_section": tuple(rope.get("mrope_section", ())),
            "rope_theta": rope.get("rope_theta", text.get("rope_theta", 1e6)),
            "tie_word_embeddings": hf.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        }
        vision["fullatt_block_indexes"] = tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31)))
        vision["rope_theta"] = (vision.get("rope_parameters") or {}).get("rope_theta", 1e4)
        if text.get("use_sliding_window"):
            raise CheckpointError(
                "config.json: use_sliding_window: got true, expected false; sliding windows are not supported"
            )
        try:
            config = cls(
                text=_pick(TextConfig, text),
                vision=_pick(VisionConfig, vision),
                **{name: hf[name] for name in _TOKEN_IDS},
                **computation,
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"config.json lacks a key: {error}") from error
        if 2 * sum(config.text.mrope_section) != config.text.head_dim:
            raise CheckpointError(
                f"mrope_section {config.text.mrope_section} must sum to half the head width {config.text.head_dim}"
            )
        return config

    @property
    def layout(self) -> VisionLayout:
        vision = self.vision
        window_patches = (vision.window_size // vision.patch_size) ** 2
        classes = tuple((4**i, window_patches) for i in range(6))  # up to 16,384 tokens in windows of 16
        return VisionLayout(vision.window_size, vision.tokens_per_second, classes)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dictionary that `transformers.Qwen2_5_VLConfig` reads."""
        text = dataclasses.asdict(self.text)
        vision = dataclasses.asdict(self.vision)
        mrope = {"mrope_section": list(text.pop("mrope_section")), "rope_theta": text.pop("rope_theta")}
        text["rope_parameters"] = {"rope_type": "default", "type": "mrope", **mrope}
        text |= {"model_type": "qwen2_5_vl_text", "hidden_act": "silu", "use_sliding_window": False}
        text |= {"bos_token_id": None, "eos_token_id": None}
        for ours in ("rms_norm_eps", "rope_theta"):
            vision.pop(ours)
        vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
        vision |= {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"}
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": self.model_type,
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            **{name: getattr(self, name) for name in _TOKEN_IDS},
        }


# Defaults of Hugging Face's class. Older versions omitted these values from the files of many fine-tuned models.
_VISION_DEFAULTS = {"depth": 32, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584, "tokens_per_second": 4}
_TOKEN_IDS = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")


def _pick(cls: type, values: dict[str, Any]) -> Any:
    """Builds a dataclass from `values`. Ignores keys that are not its fields."""
    return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
