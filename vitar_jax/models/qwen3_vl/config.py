"""Configuration of Qwen3-VL, read from and written to Hugging Face's `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vitar_jax.errors import CheckpointError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.rope import Rotary, interleaved_mrope
from vitar_jax.processing.positions import VisionLayout


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Field names are Hugging Face's.

    Attributes:
      num_position_embeddings: Entries of the square table of learned positions.
      deepstack_visual_indexes: Blocks whose outputs are merged and added after the first decoder layers (DeepStack).
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]
    num_position_embeddings: int = 2304
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    in_channels: int = 3
    layer_norm_eps: float = 1e-6  # fixed in Hugging Face's vision blocks
    rope_theta: float = 1e4

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def table_side(self) -> int:
        """Side of the table of learned positions."""
        return math.isqrt(self.num_position_embeddings)

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
    head_dim: int
    mrope_section: tuple[int, int, int]
    rope_theta: float = 5e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 262_144

    def rotary(self, position_ids: jax.Array) -> Rotary:
        """Returns cosines and sines [*B, S, E/2] of position ids [*B, 3, S]."""
        return interleaved_mrope(position_ids, self.head_dim, self.rope_theta, self.mrope_section)


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig(ModelConfig):
    """A Qwen3-VL model."""

    model_type: ClassVar[str] = "qwen3_vl"

    text: TextConfig
    vision: VisionConfig

    @property
    def injection_levels(self) -> int:
        return len(self.vision.deepstack_visual_indexes)

    @property
    def layout(self) -> VisionLayout:
        return VisionLayout(size_classes=tuple((1, 64 * 4**i) for i in range(6)))  # up to 16,384 tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        text, vision = self.text, self.vision
        if vision.table_side**2 != vision.num_position_embeddings:
            raise CheckpointError(
                f"vision_config.num_position_embeddings: got {vision.num_position_embeddings}, expected a square number"
            )
        levels = vision.deepstack_visual_indexes
        if list(levels) != sorted(set(levels)) or not set(levels) <= set(range(vision.depth)):
            raise CheckpointError(
                f"vision_config.deepstack_visual_indexes: got {list(levels)}, expected increasing numbers from 0 to "
                f"{vision.depth - 1}"
            )
        if len(levels) > text.num_hidden_layers:
            raise CheckpointError(
                f"vision_config.deepstack_visual_indexes: got {len(levels)} layers, expected at most the decoder's "
                f"{text.num_hidden_layers}"
            )
        if 2 * sum(text.mrope_section) != text.head_dim:
            raise CheckpointError(
                f"text_config: mrope_section {list(text.mrope_section)} must sum to half the head width {text.head_dim}"
            )

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **computation: Any) -> "Qwen3VLConfig":
        """Reads the published form, with `rope_scaling` beside `rope_theta`, or that of transformers 5, with `rope_parameters`.

        Raises:
          CheckpointError: If the configuration has a feature that is not supported, or lacks a key.
        """
        text, vision = (_object(hf, key) for key in ("text_config", "vision_config"))
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        for key, got, expected in (
            ("text_config.rope_parameters.rope_type", rope.get("rope_type", rope.get("type", "default")), ("default", "mrope")),
            ("text_config.rope_parameters.mrope_interleaved", rope.get("mrope_interleaved", True), (True,)),
            ("text_config.attention_bias", text.get("attention_bias", False), (False,)),
            ("text_config.hidden_act", text.get("hidden_act", "silu"), ("silu",)),
            ("vision_config.hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), ("gelu_pytorch_tanh",)),
            ("vision_config.model_type", vision.get("model_type", "qwen3_vl"), ("qwen3_vl", "qwen3_vl_vision")),
        ):
            if got not in expected:
                raise CheckpointError(f"config.json: {key}: got {got!r}, expected {expected[0]!r}")
        text |= {
            "mrope_section": tuple(rope.get("mrope_section", (24, 20, 20))),
            "rope_theta": rope.get("rope_theta", text.get("rope_theta", 5e6)),
            "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        }
        vision["rope_theta"] = (vision.get("rope_parameters") or {}).get("rope_theta", 1e4)
        vision["deepstack_visual_indexes"] = tuple(vision.get("deepstack_visual_indexes", (8, 16, 24)))
        try:
            return cls(
                text=_pick(TextConfig, text),
                vision=_pick(VisionConfig, vision),
                **{name: hf[name] for name in _TOKEN_IDS},
                **computation,
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"config.json lacks a key: {error}") from error

    def to_hf(self) -> dict[str, Any]:
        """Returns the dictionary that `transformers.Qwen3VLConfig` reads."""
        text, vision = dataclasses.asdict(self.text), dataclasses.asdict(self.vision)
        sections, theta = list(text.pop("mrope_section")), text.pop("rope_theta")
        rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": sections}
        text |= {"rope_parameters": {**rope, "rope_theta": theta}, "model_type": "qwen3_vl_text"}
        text |= {"hidden_act": "silu", "attention_bias": False}
        for ours in ("layer_norm_eps", "rope_theta"):
            vision.pop(ours)
        vision["deepstack_visual_indexes"] = list(vision["deepstack_visual_indexes"])
        vision |= {"model_type": "qwen3_vl_vision", "hidden_act": "gelu_pytorch_tanh"}
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": self.model_type,
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            **{name: getattr(self, name) for name in _TOKEN_IDS},
        }


_TOKEN_IDS = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")


def _object(hf: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns a copy of a JSON object."""
    if not isinstance(hf.get(key), dict):
        raise CheckpointError(f"config.json: {key}: got {hf.get(key)!r}, expected an object")
    return dict(hf[key])


def _pick(cls: type, values: dict[str, Any]) -> Any:
    """Builds a dataclass from `values`. Ignores keys that are not its fields."""
    return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
