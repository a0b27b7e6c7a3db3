"""How many floating-point operations the model's mathematics asks for, counted from its sizes.

Only matrix products count, two operations a multiply-add. Causal attention is counted in full, as if every token looked
at every other of its row; what a remat policy computes again is not counted. A rate over these numbers is model FLOP
utilisation (Chowdhery et al., 2022, appendix B).
"""

from vitar_jax.models.config import TextConfig, VisionConfig

BACKWARD = 2  # each product is two in the backward pass: for its input and for its weight


def text_flops(config: TextConfig, *, rows: int, tokens: int) -> int:
    """Forward pass of the decoder over `rows` rows of `tokens` tokens, without the head."""
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    projections = config.hidden_size * (2 * heads + 2 * kv_heads)
    mlp = 3 * config.hidden_size * config.intermediate_size
    attention = 2 * tokens * heads  # scores, and the mean of values
    return 2 * rows * tokens * config.num_hidden_layers * (projections + mlp + attention)


def head_flops(config: TextConfig, *, tokens: int) -> int:
    """Logits of `tokens` tokens."""
    return 2 * tokens * config.hidden_size * config.vocab_size


def vision_flops(config: VisionConfig, *, images: int, windows: int, window_patches: int) -> int:
    """Forward pass of the vision tower over images of `windows` windows of `window_patches` patches."""
    d, patches = config.hidden_size, windows * window_patches
    full = len(config.fullatt_block_indexes)
    blocks = config.depth * (4 * d * d + 3 * d * config.intermediate_size)
    attention = 2 * d * ((config.depth - full) * window_patches + full * patches)
    merged = d * config.spatial_merge_size**2
    merger = merged * (merged + config.out_hidden_size) // config.spatial_merge_size**2  # a patch's share
    return 2 * images * patches * (config.patch_width * d + blocks + attention + merger)
