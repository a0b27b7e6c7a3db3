"""A tiny random Qwen2.5-VL with a tokenizer and a processor, shared by many tests.

The random weights are larger than the initial weights of Hugging Face's module. Attention is therefore sharp, and logits
have a standard deviation of about 2, so errors in any mechanism become visible.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from data_prep.phantom.tokenizer import save as save_tokenizer
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.registry import abstract_model
from vitar_jax.processing.chat import Chat, Message, Video
from vitar_jax.processing.images import ImageProcessor, ProcessedImage
from vitar_jax.processing.packing import Example
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor

torch.set_num_threads(1)  # too small for two threads, which on a busy machine take 50 times as long, waiting for each other

WINDOW = 56  # pixels, or 2 x 2 tokens, so that small images have several windows, some of them truncated
WINDOW_PATCHES = 16
_Module = TypeVar("_Module", bound=torch.nn.Module)
VOCAB = 512  # more rows than the tokenizer has ids, as in published models


@cache
def chat() -> Chat:
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(directory)
        return Chat(directory)


def processor(*windows: int, max_pixels: int = 28 * 28 * 24) -> Processor:
    """Returns a processor with one size class per number of windows."""
    return Processor(
        chat=chat(),
        images=ImageProcessor(min_pixels=28 * 28 * 4, max_pixels=max_pixels),
        size_classes=tuple(SizeClass(count, WINDOW_PATCHES) for count in windows),
        layout=VisionLayout(WINDOW, tokens_per_second=2),
    )


def hf_config(*, tie: bool = False, vision: Mapping[str, object] | None = None, **text: object) -> Qwen2_5_VLConfig:
    """Returns a small config: two heads per key-value head, two windowed and two full vision layers.

    `vision` and `text` override keys of the tower and the decoder.
    """
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
    tower = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": WINDOW,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=sizes | {"rope_parameters": rope} | text,
        vision_config=tower | dict(vision or {}),
        tie_word_embeddings=tie,
        image_token_id=markup.image_pad,
        vision_start_token_id=markup.vision_start,
        vision_end_token_id=markup.vision_end,
        video_token_id=markup.video_pad,
    )


def hf_model(config: Qwen2_5_VLConfig, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Returns Hugging Face's module in fp32 with random weights."""
    config._attn_implementation = "eager"
    return randomize(Qwen2_5_VLForConditionalGeneration(config), seed)


def randomize(model: _Module, seed: int = 0) -> _Module:
    """Draws random weights for a module and returns it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=generator)
            if name.endswith("weight") and ("norm" in name or "ln_q" in name):
                weight.mul_(0.2).add_(1.0)
            elif weight.ndim == 1:
                weight.mul_(0.2)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.mul_(2.0 * weight.shape[1] ** -0.5)
            else:
                weight.mul_(1.5 * weight[0].numel() ** -0.5)
    return model.eval()


@cache
def pretrained(*, tie: bool = False) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VL]:
    """Returns Hugging Face's module, and our model with the same weights."""
    theirs = hf_model(hf_config(tie=tie))
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        return theirs, load_pretrained(directory)


def published(name: str) -> str:
    """Returns the name that a parameter of Hugging Face's module has in checkpoint files."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def with_config(model: Any, **changes: Any) -> Any:
    """Returns a model with the same weights and a changed config."""
    config = dataclasses.replace(model.config, **changes)
    return jax.tree.unflatten(jax.tree.structure(abstract_model(config)), jax.tree.leaves(model))


class Clip(NamedTuple):
    """A video, and the seconds between consecutive slices."""

    image: ProcessedImage
    seconds: float


def clip(steps: int, rows: int, columns: int, *, seconds: float, seed: int = 0) -> Clip:
    """Returns a video of noise with `steps` slices of rows x columns tokens."""
    grid = (steps, 2 * rows, 2 * columns)
    patches = np.random.default_rng(seed).normal(size=(4 * steps * rows * columns, 3 * 2 * 14 * 14))
    return Clip(ProcessedImage(patches.astype(np.float32), grid, (28 * rows, 28 * columns)), seconds)


Part = str | Image.Image | Clip


def example(name: str, parts: Sequence[Part], using: Processor, *further: Sequence[Part]) -> Example:
    """Returns a user message of text, images and videos, with half of its text tokens in the loss mask.

    The messages of `further` alternate between the model and the user.
    """
    seen: list[ProcessedImage] = []

    def place(part: Part) -> str | int | Video:
        if isinstance(part, str):
            return part
        seen.append(part.image if isinstance(part, Clip) else using.process(part))
        count = using.tokens(seen[-1].grid_thw)
        return Video(count) if isinstance(part, Clip) else count

    messages: list[Message] = [
        ("assistant" if i % 2 else "user", [place(part) for part in message]) for i, message in enumerate([parts, *further])
    ]
    token_ids = np.array(using.chat.render(messages, reply=True), np.int32)
    is_vision = np.isin(token_ids, [using.chat.image_pad, using.chat.video_pad])
    grids = tuple(image.grid_thw for image in seen)
    return Example(
        name=name,
        token_ids=token_ids,
        loss_mask=~is_vision & (np.arange(len(token_ids)) % 2 == 1),
        position_ids=using.append_positions(0, token_ids, grids, seconds(parts, *further))[0],
        vision_index=np.where(is_vision, np.cumsum(is_vision) - 1, -1).astype(np.int32),
        patches=tuple(image.patches for image in seen),
        grids=grids,
        content_ids=tuple(hashlib.sha256(image.patches.tobytes()).hexdigest() for image in seen),
    )


def seconds(*messages: Sequence[Part]) -> tuple[float, ...]:
    """Returns the seconds per grid of all images and videos, 0 for an image."""
    parts = [part for message in messages for part in message if not isinstance(part, str)]
    return tuple(part.seconds if isinstance(part, Clip) else 0.0 for part in parts)


def hf_inputs(
    token_ids: Sequence[int] | np.ndarray, images: Sequence[ProcessedImage], seconds_per_grid: Sequence[float] = ()
) -> dict[str, torch.Tensor]:
    """Returns the inputs of Hugging Face's module for one sequence without padding. Videos have seconds above 0."""
    ids = torch.tensor(np.asarray(token_ids)[None], dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == chat().image_pad).int() + 2 * (ids == chat().video_pad).int(),
    }
    each = list(zip(images, seconds_per_grid or [0.0] * len(images), strict=True))
    videos = [image for image, seconds in each if seconds]
    stills = [image for image, seconds in each if not seconds]
    if stills:
        inputs["pixel_values"] = torch.tensor(np.concatenate([image.patches for image in stills]))
        inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in stills])
    if videos:
        inputs["pixel_values_videos"] = torch.tensor(np.concatenate([image.patches for image in videos]))
        inputs["video_grid_thw"] = torch.tensor([image.grid_thw for image in videos])
        inputs["second_per_grid_ts"] = torch.tensor([seconds for _, seconds in each if seconds])
    return inputs
