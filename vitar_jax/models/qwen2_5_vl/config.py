"""Configuration of Qwen2.5-VL, read from and written to Hugging Face's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vitar_jax.errors import CheckpointError
from vitar_jax.models.config import ModelConfig, TowerSizes
from vitar_jax.models.hf_keys import TOKEN_IDS, check_rope, check_sizes, read_rope, read_section, section, token_ids
from vitar_jax.models.qwen2_5_vl import hf_keys
from vitar_jax.models.rope import Rotary, mrope
from vitar_jax.processing.positions import VisionLayout


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerSizes):
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
        """Reads the flat form of the published files or the nested one of later versions of transformers.

        `hf_keys.py` lists what becomes of each key. If there is a `text_config`, the decoder's keys outside it are not read, as
        in transformers, but must not contradict what is supported.

        Raises:
          CheckpointError: If a key has a value that is not supported, is missing, or contradicts another.
        """
        nested, vision = section(hf, "text_config"), section(hf, "vision_config") or {}
        text, where = (hf, "") if nested is None else (nested, "text_config.")
        hf_keys.TOP.check(hf)
        hf_keys.TEXT.check(text, where)
        hf_keys.TEXT.check({**hf, "model_type": None})
        hf_keys.VISION.check(vision, "vision_config.")
        check_rope(hf, hf_keys.ROPE)
        check_rope(text, hf_keys.ROPE, where)
        read = cls(
            text=_read_text(text, where, tied=any(section.get("tie_word_embeddings") for section in (hf, text))),
            vision=_read_vision(vision),
            **token_ids(hf),
            **computation,
        )
        read._check_sizes()
        return read

    def _check_sizes(self) -> None:
        """Raises CheckpointError if two sizes contradict each other."""
        text, vision = self.text, self.vision
        unit = vision.patch_size * vision.spatial_merge_size
        own = (
            (
                text.hidden_size % text.num_attention_heads == 0 == text.num_attention_heads % text.num_key_value_heads,
                f"num_attention_heads: got {text.num_attention_heads}, expected a divisor of hidden_size {text.hidden_size} "
                f"and a multiple of num_key_value_heads {text.num_key_value_heads}",
            ),
            (
                vision.window_size % unit == 0,
                f"vision_config.window_size: got {vision.window_size}, expected a multiple of {unit}, the width of a token",
            ),
        )
        check_sizes(self, own)

    @property
    def layout(self) -> VisionLayout:
        vision = self.vision
        window_patches = (vision.window_size // vision.patch_size) ** 2
        classes = tuple((2**i, window_patches) for i in range(12))  # up to 16,384 tokens of any shape in windows of 16
        return VisionLayout(vision.window_size, vision.tokens_per_second, classes)

    def to_hf(self) -> dict[str, Any]:
        """Returns the dictionary that `transformers.Qwen2_5_VLConfig` reads: the flat form of the published files.

        transformers 4.49 to 4.51 do not read the nested form, and later ones read both.
        """
        text, vision = dataclasses.asdict(self.text), dataclasses.asdict(self.vision)
        section, theta = list(text.pop("mrope_section")), vision.pop("rope_theta")
        vision.pop("rms_norm_eps")
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": self.model_type,
            **text,
            "hidden_act": "silu",
            "use_sliding_window": False,
            "sliding_window": None,  # the default is a number, which transformers 4.49 applies without use_sliding_window
            "rope_scaling": {"type": "mrope", "mrope_section": section},  # of transformers 4
            "rope_parameters": {"rope_type": "default", "rope_theta": self.text.rope_theta, "mrope_section": section},
            "vision_config": {
                **vision,
                "fullatt_block_indexes": list(self.vision.fullatt_block_indexes),
                "hidden_act": "silu",
                "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            },
            **self.generation.for_config(),
            **{name: getattr(self, name) for name in TOKEN_IDS},
        }


# Defaults of Hugging Face's classes. Older versions omitted these values from the files of many fine-tuned models.
_TEXT_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 32_768}
_VISION_DEFAULTS = {
    "depth": 32,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "tokens_per_second": 4,
}
_VISION_SPELLINGS = {"in_chans": "in_channels", "num_attention_heads": "num_heads", "num_hidden_layers": "depth"}


def _read_text(values: Mapping[str, Any], where: str, *, tied: bool) -> TextConfig:
    heads = values.get("num_attention_heads")
    rope = read_rope(values, where)
    if "mrope_section" not in rope:
        raise CheckpointError(f"{where}rope_scaling.mrope_section: must be set")
    text = read_section(
        TextConfig,
        _TEXT_DEFAULTS
        | {"rope_theta": 1e6}
        | dict(values)
        | ({"num_key_value_heads": heads} if values.get("num_key_value_heads", heads) is None else {})
        | rope
        | {"tie_word_embeddings": tied},
        where,
    )
    if values.get("head_dim") not in (None, text.hidden_size // text.num_attention_heads):
        raise CheckpointError(f"{where}head_dim: got {values['head_dim']}, expected hidden_size / num_attention_heads")
    return text


def _read_vision(values: Mapping[str, Any]) -> VisionConfig:
    where = "vision_config."
    check_rope(values, hf_keys.VISION_ROPE, where)
    spelled = {ours: values[theirs] for theirs, ours in _VISION_SPELLINGS.items() if theirs in values}
    fixed = {"rms_norm_eps": 1e-6, "rope_theta": 1e4} | read_rope(values, where)
    return read_section(VisionConfig, _VISION_DEFAULTS | spelled | dict(values) | fixed, where)
