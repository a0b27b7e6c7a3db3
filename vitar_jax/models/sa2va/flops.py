"""FLOPs of the parts of Sa2VA, counted as `models/flops.py` defines."""

from vitar_jax.models.family import Part
from vitar_jax.models.flops import Products
from vitar_jax.models.qwen3_vl import QWEN3_VL
from vitar_jax.models.sa2va.config import Sa2VAConfig
from vitar_jax.models.sam2.flops import decoder_products, encoder_products


def products(
    config: Sa2VAConfig, *, mask_images: int = 0, mask_entries: int = 0, masks: int = 0, **language: int
) -> dict[Part, Products]:
    """Counts the matrix products of each part in a forward pass; see `Family.products`."""
    width, prompt = config.text.hidden_size, config.sam2.decoder.hidden_size
    return {
        "mask_encoder": encoder_products(config.sam2, images=mask_images),
        **QWEN3_VL.products(config, **language),
        "bridge": Products(masks, 2 * masks * width * (width + prompt)),
        "mask_decoder": decoder_products(config.sam2, images=mask_images, entries=mask_entries, masks=masks),
    }
