"""Configuration of Qwen3-VL, read from and written to Hugging Face's `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax

from vitar_jax.models.config import ModelConfig, TowerSizes
from vitar_jax.models.hf_keys import TOKEN_IDS, check_rope, check_sizes, read_rope, read_section, section, token_ids
from vitar_jax.models.qwen3_vl import hf_keys
from vitar_jax.models.rope import Rotary, interleaved_mrope
from vitar_jax.processing.positions import VisionLayout


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerSizes):
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
    def table_side(self) -> int:
        """Side of the table of learned positions."""
        return math.isqrt(self.num_position_embeddings)


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
        return VisionLayout(size_classes=tuple((1, 64 * 2**i) for i in range(11)))  # up to 16,384 tokens

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **computation: Any) -> Self:
        """Reads the published form, with `rope_scaling` beside `rope_theta`, or that of transformers 5, with `rope_parameters`.

        `hf_keys.py` lists what becomes of each key.

        Raises:
          CheckpointError: If a key has a value that is not supported, is missing, or contradicts another.
        """
        text, vision = section(hf, "text_config") or {}, section(hf, "vision_config") or {}
        hf_keys.TOP.check(hf)
        hf_keys.TEXT.check(text, "text_config.")
        hf_keys.VISION.check(vision, "vision_config.")
        check_rope(text, hf_keys.ROPE, "text_config.")
        check_rope(vision, hf_keys.VISION_ROPE, "vision_config.")
        spelled = {ours: vision[theirs] for theirs, ours in _VISION_SPELLINGS.items() if theirs in vision}
        config = cls(
            text=read_section(
                TextConfig,
                _TEXT_DEFAULTS
                | text
                | read_rope(text, "text_config.")
                | {"tie_word_embeddings": hf.get("tie_word_embeddings", False)},
                "text_config.",
            ),
            vision=read_section(
                VisionConfig,
                _VISION_DEFAULTS | spelled | vision | _VISION_FIXED | read_rope(vision, "vision_config."),
                "vision_config.",
            ),
            **token_ids(hf),
            **computation,
        )
        config._check_sizes()
        return config

    def _check_sizes(self) -> None:
        """Raises CheckpointError if two sizes contradict each other."""
        text, vision = self.text, self.vision
        taken = vision.deepstack_visual_indexes
        own = (
            (
                text.num_attention_heads % text.num_key_value_heads == 0,
                f"text_config.num_attention_heads: got {text.num_attention_heads}, expected a multiple of "
                f"num_key_value_heads {text.num_key_value_heads}",
            ),
            (
                vision.table_side**2 == vision.num_position_embeddings,
                f"vision_config.num_position_embeddings: got {vision.num_position_embeddings}, expected a square number",
            ),
            (
                list(taken) == sorted({*taken} & {*range(vision.depth)}),
                f"vision_config.deepstack_visual_indexes: got {taken}, expected different blocks in order, from 0 to "
                f"{vision.depth - 1}",
            ),
            (
                len(taken) <= text.num_hidden_layers,
                f"vision_config.deepstack_visual_indexes: got {len(taken)} blocks, expected at most as many as the decoder "
                f"has layers, {text.num_hidden_layers}",
            ),
        )
        check_sizes(self, own, "text_config.")

    def to_hf(self) -> dict[str, Any]:
        """Returns the dictionary that `transformers.Qwen3VLConfig` reads."""
        text, vision = dataclasses.asdict(self.text), dataclasses.asdict(self.vision)
        rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(text.pop("mrope_section"))}
        theta = vision.pop("rope_theta")
        vision.pop("layer_norm_eps")
        return {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": self.model_type,
            "text_config": {
                **text,
                "model_type": "qwen3_vl_text",
                "hidden_act": "silu",
                "attention_bias": False,
                "rope_scaling": rope,  # of transformers 4
                "rope_parameters": {**rope, "rope_theta": self.text.rope_theta},
                **self.generation.for_config(),
            },
            "vision_config": {
                **vision,
                "model_type": "qwen3_vl",  # the spelling in the published files, which every version reads
                "hidden_act": "gelu_pytorch_tanh",
                "deepstack_visual_indexes": list(self.vision.deepstack_visual_indexes),
                "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            },
            "tie_word_embeddings": self.text.tie_word_embeddings,
            **{name: getattr(self, name) for name in TOKEN_IDS},
        }


# Defaults of Hugging Face's classes, for files that omit keys.
_TEXT_DEFAULTS = {"head_dim": 128, "mrope_section": (24, 20, 20), "rope_theta": 5e5, "max_position_embeddings": 128_000}
_VISION_DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "deepstack_visual_indexes": (8, 16, 24),
}
_VISION_FIXED = {"layer_norm_eps": 1e-6, "rope_theta": 1e4}
_VISION_SPELLINGS = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}
