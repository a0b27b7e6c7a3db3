"""Sizes of published models, for random weights and for planning. Checkpoints have their own `config.json`."""

from collections.abc import Mapping

from vitar_jax.models.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig


def _model(*, width: int, mlp: int, layers: int, heads: int, large_tower: bool, tie: bool) -> Qwen3VLConfig:
    tower = (1152, 4304, 27, (8, 16, 24)) if large_tower else (1024, 4096, 24, (5, 11, 17))
    return Qwen3VLConfig(
        text=TextConfig(
            vocab_size=151_936,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            mrope_section=(24, 20, 20),
            tie_word_embeddings=tie,
        ),
        vision=VisionConfig(
            hidden_size=tower[0],
            intermediate_size=tower[1],
            depth=tower[2],
            num_heads=16,
            out_hidden_size=width,
            deepstack_visual_indexes=tower[3],
        ),
        image_token_id=151_655,
        video_token_id=151_656,
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
    )


# Qwen/Qwen3-VL-{2B,4B,8B,32B}-Instruct.
SIZES: Mapping[str, Qwen3VLConfig] = {
    "qwen3_vl_2b": _model(width=2048, mlp=6144, layers=28, heads=16, large_tower=False, tie=True),
    "qwen3_vl_4b": _model(width=2560, mlp=9728, layers=36, heads=32, large_tower=False, tie=True),
    "qwen3_vl_8b": _model(width=4096, mlp=12_288, layers=36, heads=32, large_tower=True, tie=False),
    "qwen3_vl_32b": _model(width=5120, mlp=25_600, layers=64, heads=64, large_tower=True, tie=False),
}
