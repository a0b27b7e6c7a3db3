"""FLOPs of the parts of Qwen3-VL, counted as `models/flops.py` defines."""

from vitar_jax.models.family import Part
from vitar_jax.models.flops import Products, head_flops, text_attention_flops, text_flops
from vitar_jax.models.qwen3_vl.config import Qwen3VLConfig


def products(
    config: Qwen3VLConfig, *, images: int, windows: int, window_patches: int, rows: int, tokens: int, scored_tokens: int
) -> dict[Part, Products]:
    """Counts the matrix products of each part in a forward pass; see `Family.products`."""
    text, vision = config.text, config.vision
    d, slots = vision.hidden_size, windows * window_patches
    blocks = vision.depth * (4 * d * d + 2 * d * vision.intermediate_size)
    merged = d * vision.spatial_merge_size**2
    features = images * slots // vision.spatial_merge_size**2
    of_tokens = text_attention_flops(text, rows=rows, tokens=tokens)
    return {
        "vision": Products(
            images * slots,
            2 * images * slots * (vision.patch_width * d + blocks),
            2 * images * slots * 2 * d * vision.depth * slots,
        ),
        "merger": Products(features, 2 * features * merged * (merged + vision.out_hidden_size) * (1 + config.injection_levels)),
        "embeddings": Products(rows * tokens, 0),
        "decoder": Products(rows * tokens, text_flops(text, rows=rows, tokens=tokens) - of_tokens, of_tokens),
        "head": Products(scored_tokens, head_flops(text, tokens=scored_tokens)),
    }
