"""Qwen2.5-VL (Bai et al., 2025, arXiv 2502.13923)."""

import jax

from vitar_jax.models.blocks import PreNormLayer
from vitar_jax.models.decoder import Decoder
from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from vitar_jax.models.qwen2_5_vl.vision import VisionTower
from vitar_jax.models.vision_language import VisionLanguageModel


class Qwen2_5_VL(VisionLanguageModel):
    """The model with random weights in fp32.

    Args:
      std: Standard deviation of the weights. If None, 1 / sqrt(width), which suits small models.
    """

    def __init__(self, config: Qwen2_5_VLConfig, *, key: jax.Array, std: float | None = None):
        keys = jax.random.split(key, 3)
        text = config.text
        super().__init__(
            config,
            VisionTower(config.vision, key=keys[0], std=std, remat=config.remat, attention=config.attention),
            Decoder(
                config,
                lambda key: PreNormLayer(text, eps=text.rms_norm_eps, bias=True, qk_norm=False, key=key, std=std),
                norm_eps=text.rms_norm_eps,
                key=keys[1],
                std=std,
            ),
            key=keys[2],
            std=std,
        )
