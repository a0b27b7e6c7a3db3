"""The recipe of `micro.py` with a Qwen3-VL, which starts with `sft`: its decoder adds one level of DeepStack."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_MICRO = runpy.run_path(str(Path(__file__).with_name("micro.py")))


def get_config() -> ConfigDict:
    config: Any = _MICRO["get_config"]()
    config.model.family = "qwen3_vl"
    config.model.text = dict(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=24,
        mrope_section=(4, 4, 4),
        rope_theta=100.0,
        tie_word_embeddings=True,
    )
    config.model.vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=32,
        deepstack_visual_indexes=(0,),
        num_position_embeddings=36,
    )
    config.processor.update(min_pixels=4096, max_pixels=9300)  # at most 96 x 96 pixels: 36 patches, 9 tokens
    config.schedule = ("sft", "grpo")
    del config.stages["warmup"]
    config.stages.sft.start = ""
    return config
