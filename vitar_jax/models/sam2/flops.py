"""FLOPs of SAM 2's image encoder and mask decoder, counted as `models/flops.py` defines."""

from vitar_jax.models.flops import Products
from vitar_jax.models.sam2.config import Run, Sam2Config, TrunkConfig
from vitar_jax.models.sam2.decoder import MASK_TOKENS
from vitar_jax.models.sam2.trunk import PATCH_KERNEL, PATCH_STRIDE

_PROMPT_TOKENS = 3  # a vector and two padding tokens


def encoder_products(config: Sam2Config, *, images: int) -> Products:
    """Counts the matrix products of trunk and neck. Windows that exceed their map are counted in full."""
    trunk, side = config.trunk, config.image_size // PATCH_STRIDE
    weights, attention = side**2 * 3 * PATCH_KERNEL**2 * trunk.embed_dim_per_stage[0], 0
    for run in trunk.runs:
        of_run = [_block(trunk, run, side, window) for window in run.windows]
        weights += sum(of_block[0] for of_block in of_run)
        attention += sum(of_block[1] for of_block in of_run)
        side //= 1 + run.pools
    neck = sum(
        (config.image_size // PATCH_STRIDE // 2**stage) ** 2 * width * config.decoder.hidden_size
        for stage, width in enumerate(trunk.embed_dim_per_stage)
    )
    return Products(images, 2 * images * (weights + neck), 2 * images * attention)


def _block(trunk: TrunkConfig, run: Run, side: int, window: int) -> tuple[int, int]:
    """Returns the multiply-adds of a block with and without weights, on a map of this side."""
    d_in, d_out = (trunk.embed_dim_per_stage[run.stage - before] for before in (run.pools, 0))
    shrink = 4 if run.pools else 1  # input places per output place
    window = window or side
    padded = (-(-side // window) * window) ** 2
    queries, places = padded // shrink, side**2 // shrink
    shortcut = side**2 * d_in * d_out if run.pools else 0
    projections = padded * d_in * 3 * d_out + queries * d_out**2
    mlp = 2 * places * d_out * int(d_out * trunk.mlp_ratio)
    return shortcut + projections + mlp, 2 * queries * window**2 * d_out


def decoder_products(config: Sam2Config, *, images: int, entries: int, masks: int) -> Products:
    """Counts the matrix products of the mask decoder.

    Args:
      images: Number of images whose fine and middle maps are projected.
      entries: Number of sets of masks. The masks of a set share the first block's projections of their image.
      masks: Number of masks of all sets.
    """
    decoder, width = config.decoder, config.decoder.hidden_size
    inner = width // decoder.attention_downsample_rate
    places = (config.image_size // PATCH_STRIDE // 4) ** 2
    tokens = 2 + MASK_TOKENS + _PROMPT_TOKENS
    of_image = 16 * places * width * (width // 8) + 4 * places * width * (width // 4)
    of_entry = 3 * places * width * inner  # keys, values and queries of the image in the first block
    self_attention = 4 * tokens * width**2
    of_tokens, of_places = 2 * tokens * width * inner, 2 * places * width * inner  # of one attention between both
    mlp = 2 * tokens * width * decoder.mlp_dim
    blocks = 2 * (self_attention + mlp) + 5 * (of_tokens + of_places) - of_entry
    upscaled = places * width * width + 4 * places * (width // 4) * (width // 2)
    heads = (MASK_TOKENS + 1) * 2 * width**2 + MASK_TOKENS * width * (width // 8) + width
    heads += width * decoder.iou_head_hidden_dim + decoder.iou_head_hidden_dim**2 + decoder.iou_head_hidden_dim * MASK_TOKENS
    selected = (MASK_TOKENS - 1) * 16 * places * (width // 8)
    attention = 2 * 2 * tokens**2 * width + 5 * 2 * tokens * places * inner + selected
    weights = images * of_image + entries * of_entry + masks * (blocks + upscaled + heads)
    return Products(masks, 2 * weights, 2 * masks * attention)
