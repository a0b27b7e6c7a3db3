"""A tiny random Qwen3-VL and its processor, with the tokenizer of `tests/kit/tiny.py`.

As there, weights are large, so that logits have a standard deviation of about 2.
"""

import tempfile
from collections.abc import Mapping
from functools import cache

from transformers import Qwen3VLConfig as HFConfig
from transformers import Qwen3VLForConditionalGeneration

from tests.kit import tiny
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.vision_language import VisionLanguageModel
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor

SIDE = 32  # pixels of a token
PATCHES = 96  # slots of an image


def processor() -> Processor:
    return Processor(
        chat=tiny.chat(),
        images=ImageProcessor(min_pixels=SIDE**2 * 4, max_pixels=SIDE**2 * 24, patch_size=16),
        size_classes=(SizeClass(1, PATCHES),),
        layout=VisionLayout(),
    )


def hf_config(*, tie: bool = False, vision: Mapping[str, object] | None = None, **text: object) -> HFConfig:
    """Returns a small config: heads wider than the hidden size, and two of four vision layers in DeepStack.

    `vision` and `text` override keys of the tower and the decoder.
    """
    markup = tiny.chat()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    sizes = {
        "vocab_size": tiny.VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    tower = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 48,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 2],
    }
    return HFConfig(
        text_config=sizes | {"rope_parameters": rope} | text,
        vision_config=tower | dict(vision or {}),
        tie_word_embeddings=tie,
        image_token_id=markup.image_pad,
        vision_start_token_id=markup.vision_start,
        vision_end_token_id=markup.vision_end,
        video_token_id=markup.video_pad,
    )


def hf_model(config: HFConfig, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Returns Hugging Face's module in fp32 with random weights."""
    config._attn_implementation = "eager"
    return tiny.randomize(Qwen3VLForConditionalGeneration(config), seed)


@cache
def pretrained(*, tie: bool = False) -> tuple[Qwen3VLForConditionalGeneration, VisionLanguageModel]:
    """Returns Hugging Face's module, and our model with the same weights."""
    theirs = hf_model(hf_config(tie=tie))
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, load_pretrained(directory)


def published(name: str) -> str:
    """Returns the name that a parameter of Hugging Face's module has in checkpoint files."""
    return name
