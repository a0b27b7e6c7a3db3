"""The family Qwen2.5-VL: windowed vision tower, Qwen2.5 decoder."""

from vitar_jax.models.family import Family
from vitar_jax.models.names import TensorNames
from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from vitar_jax.models.qwen2_5_vl.flops import products
from vitar_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vitar_jax.models.qwen2_5_vl.sizes import SIZES

QWEN2_5_VL = Family(
    config=Qwen2_5_VLConfig,
    text=TextConfig,
    vision=VisionConfig,
    model=Qwen2_5_VL,
    parts=(
        ("visual/merger/", "merger"),
        ("visual/", "vision"),
        ("model/embed_tokens", "embeddings"),
        ("model/", "decoder"),
        ("lm_head/", "head"),
    ),
    names=TensorNames(
        stacks=(("model/layers/", "model.layers.{}."), ("visual/blocks/", "visual.blocks.{}.")),
        renamed={
            "visual.patch_embed.weight": "visual.patch_embed.proj.weight",
            "visual.merger.fc1.": "visual.merger.mlp.0.",
            "visual.merger.fc2.": "visual.merger.mlp.2.",
        },
        in_memory=(("model.visual.", "visual."), ("model.language_model.", "model.")),
        patch_embed="visual/patch_embed/kernel",
    ),
    sizes=SIZES,
    products=products,
)
