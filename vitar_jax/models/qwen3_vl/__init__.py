"""The family Qwen3-VL: vision tower with DeepStack, Qwen3 decoder."""

from vitar_jax.models.family import Family
from vitar_jax.models.names import TensorNames
from vitar_jax.models.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from vitar_jax.models.qwen3_vl.flops import products
from vitar_jax.models.qwen3_vl.model import Qwen3VL
from vitar_jax.models.qwen3_vl.sizes import SIZES

QWEN3_VL = Family(
    config=Qwen3VLConfig,
    text=TextConfig,
    vision=VisionConfig,
    model=Qwen3VL,
    parts=(
        ("visual/merger/", "merger"),
        ("visual/deepstack_merger_list/", "merger"),
        ("visual/", "vision"),
        ("model/embed_tokens", "embeddings"),
        ("model/", "decoder"),
        ("lm_head/", "head"),
    ),
    names=TensorNames(
        stacks=(
            ("model/layers/", "model.language_model.layers.{}."),
            ("visual/blocks/", "model.visual.blocks.{}."),
            ("visual/deepstack_merger_list/", "model.visual.deepstack_merger_list.{}."),
        ),
        renamed={
            "model.": "model.language_model.",
            "visual.": "model.visual.",
            "patch_embed.": "patch_embed.proj.",
        },
        in_memory=(),
        patch_embed="visual/patch_embed/kernel",
    ),
    sizes=SIZES,
    products=products,
)
