"""Sizes of published models, for random weights and for planning. Checkpoints have their own `config.json`."""

from collections.abc import Mapping

from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig


def _model(
    *, vocab: int, width: int, mlp: int, layers: int, heads: int, kv_heads: int, vision_mlp: int, tie: bool = False
) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text=TextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            mrope_section=(16, 24, 24),
            tie_word_embeddings=tie,
        ),
        vision=VisionConfig(
            depth=32,
            hidden_size=1280,
            intermediate_size=vision_mlp,
            num_heads=16,
            out_hidden_size=width,
            fullatt_block_indexes=(7, 15, 23, 31),
        ),
        image_token_id=151_655,
        video_token_id=151_656,
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
    )


_3B = _model(vocab=151_936, width=2048, mlp=11_008, layers=36, heads=16, kv_heads=2, vision_mlp=3420, tie=True)
_7B = _model(vocab=152_064, width=3584, mlp=18_944, layers=28, heads=28, kv_heads=4, vision_mlp=3420)

# Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct and lingshu-medical-mllm/Lingshu-7B, the starting point of ViTAR.
SIZES: Mapping[str, Qwen2_5_VLConfig] = {
    "qwen2_5_vl_3b": _3B,
    "qwen2_5_vl_7b": _7B,
    "qwen2_5_vl_32b": _model(vocab=152_064, width=5120, mlp=27_648, layers=64, heads=40, kv_heads=8, vision_mlp=3456),
    "qwen2_5_vl_72b": _model(vocab=152_064, width=8192, mlp=29_568, layers=80, heads=64, kv_heads=8, vision_mlp=3456),
    "lingshu_7b": _7B,
}
