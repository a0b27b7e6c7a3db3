"""A tiny random Qwen2.5-VL with a tokenizer and a processor, shared by many tests.

The weights are Hugging Face's module with larger random numbers, so that attention is sharp and logits have a
standard deviation of about 2: a mechanism that is wrong then shows.
"""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from data_prep.phantom_tokenizer import save as save_tokenizer
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.processing.chat import Chat, Message
from vitar_jax.processing.images import ImageProcessor, ProcessedImage
from vitar_jax.processing.packing import Example
from vitar_jax.processing.positions import SizeClass, mrope_positions
from vitar_jax.processing.processor import Processor

WINDOW = 56  # pixels: a window is 2 x 2 tokens, so that small images have several, some of them cut short
WINDOW_PATCHES = 16
VOCAB = 512  # more rows than the tokenizer has ids, as published models do


@cache
def chat() -> Chat:
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(directory)
        return Chat(directory)


def processor(*windows: int, max_pixels: int = 28 * 28 * 24) -> Processor:
    """A processor with size classes of so many windows."""
    return Processor(
        chat=chat(),
        images=ImageProcessor(min_pixels=28 * 28 * 4, max_pixels=max_pixels),
        size_classes=tuple(SizeClass(count, WINDOW_PATCHES) for count in windows),
        window_size=WINDOW,
    )


def hf_config(*, tie: bool = False, **text: object) -> Qwen2_5_VLConfig:
    """Two heads a key-value head, two windowed and two full vision layers, all sizes small."""
    markup = chat()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": WINDOW,
        "fullatt_block_indexes": [1, 3],
    }
    return Qwen2_5_VLConfig(
        text_config=sizes | {"rope_parameters": rope} | text,
        vision_config=vision,
        tie_word_embeddings=tie,
        image_token_id=markup.image_pad,
        vision_start_token_id=markup.vision_start,
        vision_end_token_id=markup.vision_end,
        video_token_id=VOCAB - 1,
    )


def hf_model(config: Qwen2_5_VLConfig, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Hugging Face's module in fp32, its weights drawn anew."""
    config._attn_implementation = "eager"
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=generator)
            if "norm" in name or "ln_q" in name:
                weight.mul_(0.2).add_(1.0)
            elif weight.ndim == 1:
                weight.mul_(0.2)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.mul_(2.0 * weight.shape[1] ** -0.5)
            else:
                weight.mul_(1.5 * weight[0].numel() ** -0.5)
    return model


@cache
def pretrained(*, tie: bool = False) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VL]:
    """The same weights as Hugging Face's module and as our model."""
    theirs = hf_model(hf_config(tie=tie))
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, load_pretrained(directory)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A coloured image of which no two parts look alike."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def example(name: str, parts: Sequence[str | Image.Image], using: Processor) -> Example:
    """One user message of text and images, and half its text tokens under the loss mask."""
    seen = [using.look(part) for part in parts if isinstance(part, Image.Image)]
    counts = iter([using.tokens(image.grid_thw) for image in seen])
    message: Message = ("user", [part if isinstance(part, str) else next(counts) for part in parts])
    token_ids = np.array(using.chat.render([message], reply=True), np.int32)
    is_image = token_ids == using.chat.image_pad
    grids = tuple(image.grid_thw for image in seen)
    return Example(
        name=name,
        token_ids=token_ids,
        loss_mask=~is_image & (np.arange(len(token_ids)) % 2 == 1),
        position_ids=mrope_positions(token_ids, grids, image_token_id=using.chat.image_pad, merge_size=using.images.merge_size),
        vision_index=np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32),
        patches=tuple(image.patches for image in seen),
        grids=grids,
    )


def hf_inputs(token_ids: Sequence[int] | np.ndarray, images: Sequence[ProcessedImage]) -> dict[str, torch.Tensor]:
    """What Hugging Face's module takes for one sequence without padding."""
    ids = torch.tensor(np.asarray(token_ids)[None], dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == chat().image_pad).int(),
    }
    if images:
        inputs["pixel_values"] = torch.tensor(np.concatenate([image.patches for image in images]))
        inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in images])
    return inputs


def scratch(path: Path, files: dict[str, str]) -> Path:
    """Writes text files into a folder and returns it."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path
