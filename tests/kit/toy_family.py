"""A minimal second model family, which shows what adding a family takes.

It differs from Qwen2.5-VL where the next family will: an explicit head width, norms of queries and keys, no biases in the
decoder, no windows in the vision tower, and image features that are added after the first decoder layers (DeepStack).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from vitar_jax.models.config import ModelConfig
from vitar_jax.models.decoder import Decoder
from vitar_jax.models.family import Family, Part
from vitar_jax.models.flops import Products, head_flops, text_attention_flops, text_flops
from vitar_jax.models.kernels.backend import Attend
from vitar_jax.models.layers import Linear, RMSNorm, SwiGLU
from vitar_jax.models.names import TensorNames
from vitar_jax.models.rope import Rotary, mrope, rotate
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.positions import VisionLayout


@dataclasses.dataclass(frozen=True)
class ToyTextConfig:
    vocab_size: int
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 3
    num_attention_heads: int = 3
    num_key_value_heads: int = 1
    head_dim: int = 16  # 3 heads of 16 differ from the hidden size
    tie_word_embeddings: bool = False

    def rotary(self, position_ids: jax.Array) -> Rotary:
        return mrope(position_ids, self.head_dim, 1e4, (2, 3, 3))


@dataclasses.dataclass(frozen=True)
class ToyVisionConfig:
    hidden_size: int = 24
    levels: int = 2
    patch_size: int = 14
    spatial_merge_size: int = 2

    @property
    def patch_shape(self) -> tuple[int, int, int, int]:
        return 3, 2, self.patch_size, self.patch_size

    @property
    def patch_width(self) -> int:
        return 6 * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class ToyConfig(ModelConfig):
    model_type: ClassVar[str] = "toy_vl"

    text: ToyTextConfig
    vision: ToyVisionConfig

    @property
    def injection_levels(self) -> int:
        return self.vision.levels

    @property
    def layout(self) -> VisionLayout:
        return VisionLayout(size_classes=((1, 96),))

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **computation: Any) -> "ToyConfig":
        ids = {name: hf[name] for name in hf if name.endswith("_token_id")}
        return cls(ToyTextConfig(**hf["text_config"]), ToyVisionConfig(**hf["vision_config"]), **ids, **computation)

    def to_hf(self) -> dict[str, Any]:
        ids = {name: value for name, value in vars(self).items() if name.endswith("_token_id")}
        towers = {"text_config": dataclasses.asdict(self.text), "vision_config": dataclasses.asdict(self.vision)}
        return {"model_type": self.model_type, **towers, **ids}


class ToyLayer(nnx.Module):
    def __init__(self, config: ToyTextConfig, key: jax.Array):
        keys = jax.random.split(key, 5)
        width, e = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads * e, config.num_key_value_heads * e
        self.q_proj = Linear(width, heads, axes=("embed", "heads"), bias=False, key=keys[0])
        self.k_proj = Linear(width, kv_heads, axes=("embed", "kv_heads"), bias=False, key=keys[1])
        self.v_proj = Linear(width, kv_heads, axes=("embed", "kv_heads"), bias=False, key=keys[2])
        self.o_proj = Linear(heads, width, axes=("heads", "embed"), bias=False, key=keys[3])
        self.norm, self.q_norm, self.k_norm = RMSNorm(width, 1e-6), RMSNorm(e, 1e-6), RMSNorm(e, 1e-6)
        self.mlp_norm = RMSNorm(width, 1e-6)
        self.mlp = SwiGLU(width, config.intermediate_size, bias=False, key=keys[4])

    def __call__(self, x: jax.Array, rotary: Rotary, attend: Attend) -> jax.Array:
        seen = self.norm(x)
        width = self.q_norm.weight.shape[-1]
        q, k, v = (proj(seen).reshape(*x.shape[:-1], -1, width) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = attend(rotate(self.q_norm(q), rotary), rotate(self.k_norm(k), rotary), v)
        x = x + self.o_proj(out.reshape(*x.shape[:-1], -1))
        return x + self.mlp(self.mlp_norm(x))


class ToyTower(nnx.Module):
    """A vision tower whose only merger returns each token's embedding and the levels that the decoder adds later."""

    def __init__(self, config: ToyVisionConfig, width: int, key: jax.Array):
        keys = jax.random.split(key)
        self.patch_embed = Linear(config.patch_width, config.hidden_size, axes=(None, "embed"), bias=True, key=keys[0])
        merged = config.hidden_size * config.spatial_merge_size**2
        self.merger = Linear(merged, width * (1 + config.levels), axes=("mlp", "embed"), bias=True, key=keys[1])
        self.merged = merged

    def __call__(self, pixels: jax.Array, patch_positions: jax.Array, dtype: jnp.dtype) -> jax.Array:
        valid = (patch_positions[..., 0] >= 0).reshape(*pixels.shape[:2], 1)
        x = jnp.where(valid, jnp.tanh(self.patch_embed(pixels.astype(dtype))), 0)
        return self.merger(x.reshape(x.shape[0], -1, self.merged))


class Toy(VisionLanguageModel):
    def __init__(self, config: ToyConfig, *, key: jax.Array):
        keys = jax.random.split(key, 3)
        decoder = Decoder(config, lambda key: ToyLayer(config.text, key), norm_eps=1e-6, key=keys[1], std=None)
        super().__init__(config, ToyTower(config.vision, config.text.hidden_size, keys[0]), decoder, key=keys[2])


def products(
    config: ToyConfig, *, images: int, windows: int, window_patches: int, rows: int, tokens: int, scored_tokens: int
) -> dict[Part, Products]:
    patches, vision = images * windows * window_patches, config.vision
    attention = text_attention_flops(config.text, rows=rows, tokens=tokens)
    return {
        "vision": Products(patches, 2 * patches * vision.patch_width * vision.hidden_size),
        "merger": Products(patches // 4, 2 * patches * vision.hidden_size * config.feature_width),
        "embeddings": Products(rows * tokens, 0),
        "decoder": Products(rows * tokens, text_flops(config.text, rows=rows, tokens=tokens) - attention, attention),
        "head": Products(scored_tokens, head_flops(config.text, tokens=scored_tokens)),
    }


TOY = Family(
    config=ToyConfig,
    text=ToyTextConfig,
    vision=ToyVisionConfig,
    model=Toy,
    parts=(
        ("visual/merger/", "merger"),
        ("visual/", "vision"),
        ("model/embed_tokens", "embeddings"),
        ("model/", "decoder"),
        ("lm_head/", "head"),
    ),
    names=TensorNames(
        stacks=(("model/layers/", "model.layers.{}."),), renamed={}, in_memory=(), patch_embed="visual/patch_embed/kernel"
    ),
    sizes={"toy_vl_tiny": ToyConfig(ToyTextConfig(vocab_size=64), ToyVisionConfig())},
    products=products,
)
