"""Sizes and constants of a Qwen2.5-VL model, read from and written to Hugging Face's `config.json`."""

import dataclasses
from pathlib import Path
from typing import Any

from vitar_jax.errors import CheckpointError
from vitar_jax.models.attention import check_back_end
from vitar_jax.models.remat import check_policy
from vitar_jax.runtime.remote import CheckpointFolder

MODEL_TYPE = "qwen2_5_vl"


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
    def patch_width(self) -> int:
        """Numbers in one patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model.

    Attributes:
      dtype: the type activations are computed in; weights keep their own.
      remat: what the backward pass keeps of a layer, by the name of a policy in `models/remat.py`.
      attention: what computes attention over whole rows, by the name of a back end in `models/attention.py`.

    Raises:
      ConfigError: `remat` names no policy, or `attention` no back end that computes in `dtype`.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    video_token_id: int
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_policy(self.remat, "remat")
        check_back_end(self.attention, dtype=self.dtype)

    @classmethod
    def from_hf(cls, hf: dict[str, Any], **overrides: Any) -> "ModelConfig":
        """Reads Hugging Face's dictionary: the flat form of the published files or the nested one of today.

        Raises:
          CheckpointError: another architecture, a feature that this one does not have, or a missing key.
        """
        if hf.get("model_type") != MODEL_TYPE:
            raise CheckpointError(f"model_type is {hf.get('model_type')!r}; only {MODEL_TYPE!r} can be loaded")
        for key in ("text_config", "vision_config"):
            if not isinstance(hf.get(key, {}), dict):
                raise CheckpointError(f"config.json: {key} is {hf[key]!r}, not an object")
        text = {**hf, **hf.get("text_config", {})}
        vision = _VISION_DEFAULTS | hf.get("vision_config", {})
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        if "in_chans" in vision:  # the published files spell it so
            vision["in_channels"] = vision.pop("in_chans")
        text |= {
            "mrope_section": tuple(rope.get("mrope_section", ())),
            "rope_theta": rope.get("rope_theta", text.get("rope_theta", 1e6)),
            "tie_word_embeddings": hf.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        }
        vision["fullatt_block_indexes"] = tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31)))
        vision["rope_theta"] = (vision.get("rope_parameters") or {}).get("rope_theta", 1e4)
        if text.get("use_sliding_window"):
            raise CheckpointError("use_sliding_window is on; sliding windows are not part of this model")
        try:
            config = cls(
                text=_pick(TextConfig, text),
                vision=_pick(VisionConfig, vision),
                **{name: hf[name] for name in _TOKEN_IDS},
                **overrides,
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"config.json lacks a key: {error}") from error
        if 2 * sum(config.text.mrope_section) != config.text.head_dim:
            raise CheckpointError(
                f"mrope_section {config.text.mrope_section} must sum to half the head width {config.text.head_dim}"
            )
        return config

    @classmethod
    def from_pretrained(cls, path: str | Path | CheckpointFolder, **overrides: Any) -> "ModelConfig":
        """Reads the `config.json` of a checkpoint: a directory, a URL or a hub repository, as `load_pretrained`."""
        return cls.from_hf(CheckpointFolder.open(path, weights=False).read_json("config.json"), **overrides)

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that `transformers.Qwen2_5_VLConfig` reads."""
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
            "model_type": MODEL_TYPE,
            "text_config": text,
            "vision_config": vision,
            "tie_word_embeddings": self.text.tie_word_embeddings,
            **{name: getattr(self, name) for name in _TOKEN_IDS},
        }


# What Hugging Face's class assumes. Its older versions left these out of the files they wrote, as of many fine-tuned models.
_VISION_DEFAULTS = {"depth": 32, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584, "tokens_per_second": 4}
_TOKEN_IDS = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")


def _pick(cls: type, values: dict[str, Any]) -> Any:
    """Builds a dataclass from the keys of `values` that it has."""
    return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
