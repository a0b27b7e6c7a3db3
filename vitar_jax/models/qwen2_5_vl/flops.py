"""FLOPs of the parts of Qwen2.5-VL, counted as `models/flops.py` defines."""

from vitar_jax.models.family import Part
from vitar_jax.models.flops import Products, head_flops, text_attention_flops, text_flops
from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, VisionConfig


def vision_flops(config: VisionConfig, *, images: int, windows: int, window_patches: int) -> int:
    """Returns the FLOPs of vision tower and merger on images of `windows` windows of `window_patches` patches."""
    d, patches = config.hidden_size, images * windows * window_patches
    blocks = config.depth * (4 * d * d + 3 * d * config.intermediate_size)
    weights = 2 * patches * (config.patch_width * d + blocks)
    attention = vision_attention_flops(config, images=images, windows=windows, window_patches=window_patches)
    return weights + attention + merger_flops(config, patches=patches)


def vision_attention_flops(config: VisionConfig, *, images: int, windows: int, window_patches: int) -> int:
    """Returns the FLOPs of `vision_flops` that involve no weights: attention logits and weighted means of values."""
    full, patches = len(config.fullatt_block_indexes), windows * window_patches
    return 2 * images * patches * 2 * config.hidden_size * ((config.depth - full) * window_patches + full * patches)


def merger_flops(config: VisionConfig, *, patches: int) -> int:
    """Returns the FLOPs of the merger on `patches` patches."""
    merged = config.hidden_size * config.spatial_merge_size**2
    return 2 * patches * merged * (merged + config.out_hidden_size) // config.spatial_merge_size**2


def products(
    config: Qwen2_5_VLConfig, *, images: int, windows: int, window_patches: int, rows: int, tokens: int, scored_tokens: int
) -> dict[Part, Products]:
    """Counts the matrix products of each part in a forward pass; see `Family.products`."""
    text, vision = config.text, config.vision
    patches = images * windows * window_patches
    all_vision = vision_flops(vision, images=images, windows=windows, window_patches=window_patches)
    of_images = vision_attention_flops(vision, images=images, windows=windows, window_patches=window_patches)
    merger = merger_flops(vision, patches=patches)
    of_tokens = text_attention_flops(text, rows=rows, tokens=tokens)
    return {
        "vision": Products(patches, all_vision - of_images - merger, of_images),
        "merger": Products(patches // vision.spatial_merge_size**2, merger),
        "embeddings": Products(rows * tokens, 0),
        "decoder": Products(rows * tokens, text_flops(text, rows=rows, tokens=tokens) - of_tokens, of_tokens),
        "head": Products(scored_tokens, head_flops(text, tokens=scored_tokens)),
    }
