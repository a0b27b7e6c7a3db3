"""A small Sa2VA with random weights, and batches of traces of findings for it."""

import dataclasses
from collections.abc import Sequence
from functools import cache, partial
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.phantom.findings import source
from data_prep.phantom.tokenizer import save_for_traces
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.learning.mask_loss import MaskLossConfig
from vitar_jax.learning.sft import SFT
from vitar_jax.learning.traced_masks import traced_masks
from vitar_jax.models.qwen3_vl.config import TextConfig, VisionConfig
from vitar_jax.models.registry import random_model
from vitar_jax.models.sa2va.config import Sa2VAConfig
from vitar_jax.models.sam2.config import DecoderConfig, Sam2Config, TrunkConfig
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.chat import Chat
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.mask_targets import MaskShape
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor

SIDE, VOCAB, ROWS, MASKS = 64, 512, 8, 3
VRT = dataclasses.replace(PROTOCOLS["vrt"], question="{question}")
LIMITS = Limits(tokens=64, turn_tokens=32, images=1)
SAM2 = Sam2Config(
    TrunkConfig((8, 16, 24, 32), (1, 1, 2, 2), (1, 1, 2, 1), (4, 2, 2, 1), (3,), (4, 4)),
    DecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16),
    image_size=SIDE,
)
LOSS = MaskLossConfig(points=64, masks=MASKS)
OBJECTIVE = SFT(masks=LOSS)
CONFIG = Sa2VAConfig(
    TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=24,
        mrope_section=(4, 4, 4),
        rope_theta=100.0,
        tie_word_embeddings=True,
    ),
    VisionConfig(
        depth=1,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=32,
        deepstack_visual_indexes=(0,),
        num_position_embeddings=16,
    ),
    sam2=SAM2,
)


@cache
def processor() -> Processor:
    with TemporaryDirectory() as directory:
        save_for_traces(directory)
        chat = Chat(directory).allowing(VRT.allowed_tokens)
    images = ImageProcessor(min_pixels=64**2, max_pixels=64**2, patch_size=16)
    return Processor(chat=chat, images=images, size_classes=(SizeClass(1, 16),), layout=VisionLayout())


@cache
def banned() -> Any:
    return banned_tokens(processor().chat, VOCAB)


@cache
def model() -> Any:
    return jax.tree.map(np.asarray, jax.jit(partial(random_model, CONFIG))())


def copy() -> Any:
    """Returns a copy of the weights, which a step may donate."""
    return jax.tree.map(jnp.array, model())


def sample(index: int) -> Sample:
    return source("train", side=48)[index]


def shown(one: Sample) -> Episode:
    return demonstrate(one, VRT, processor(), LIMITS)


def shape(bins: int, masks: int = MASKS) -> BatchShape:
    """Returns a shape with room for `ROWS` traces."""
    rows = ROWS // bins
    of_masks = MaskShape(SIDE, rows, rows, masks)
    return BatchShape(bins, rows, LIMITS.tokens, rows, processor().size_classes[0], 32 * rows, of_masks)


@cache
def example(index: int) -> Example:
    """Returns a trace as an example, with masks that follow from its index."""
    episode = shown(sample(index))
    of_masks = shape(1).masks
    assert of_masks is not None
    masks = traced_masks(episode, np.random.default_rng(index), of_masks)
    return dataclasses.replace(episode.example(), masks=masks)


def make_batch(layout: BatchShape, order: Sequence[int] = range(ROWS)) -> Batch:
    return pack([example(index) for index in order], layout, processor())
