"""A model and a batch that are small enough for every test to compile its own train step."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack

PROCESSOR = tiny.processor(4)
CHAT = PROCESSOR.chat
BANNED = banned_tokens(CHAT, tiny.VOCAB)
TOLERANCE = 1e-5
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]  # data, fsdp, tensor
SIZES = [(56, 56), (84, 56), (56, 84), (84, 84), (112, 56), (56, 112), (70, 56), (56, 60)]


@cache
def model() -> Qwen2_5_VL:
    """Returns a small model: one text layer, a windowed and a full vision layer. Each test compiles its own program.

    A tensor axis of 4 splits all widths except that of the vision MLP, which stays whole.
    """
    text = TextConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(1, 1, 2),
        rope_theta=100.0,
    )
    vision = VisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=54,
        num_heads=2,
        out_hidden_size=32,
        fullatt_block_indexes=(1,),
        window_size=tiny.WINDOW,
    )
    config = Qwen2_5_VLConfig(text, vision, CHAT.image_pad, CHAT.vision_start, CHAT.vision_end, CHAT.token_id("<|video_pad|>"))
    rng = np.random.default_rng(0)
    weights = jax.jit(lambda: Qwen2_5_VL(config, key=jax.random.key(0)))()
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), weights)


def copy() -> Any:
    """Returns a copy of the weights, which a step may donate."""
    return jax.tree.map(jnp.array, model())


@cache
def examples() -> tuple[Example, ...]:
    """Returns one example with one image for each of eight bins, with advantages and slightly wrong old log-probabilities."""
    made = []
    for index, size in enumerate(SIZES):
        rng = np.random.default_rng(index)
        example = tiny.example(f"example-{index}", [noise(*size, seed=index), " lesion" * (4 + index)], PROCESSOR)
        allowed = np.flatnonzero(~BANNED)
        token_ids = np.where(example.loss_mask, rng.choice(allowed, len(example.token_ids)), example.token_ids)
        extras = {
            "advantages": np.full(len(token_ids), rng.normal(), np.float32),
            "old_logprobs": np.where(example.loss_mask, -rng.gamma(6.0, 1.0, len(token_ids)), 0).astype(np.float32),
        }
        made.append(dataclasses.replace(example, token_ids=token_ids.astype(np.int32), extras=extras))
    return tuple(made)


def shape(bins: int, *, rows: int = 0, tokens: int = 64, images: int = 0) -> BatchShape:
    rows = rows or len(SIZES) // bins
    return BatchShape(bins, rows, tokens, images or len(SIZES) // bins, PROCESSOR.size_classes[0], policy_tokens=32 * rows)


def make_batch(layout: BatchShape, order: Sequence[int] = range(8), *, streams: bool = False) -> Batch:
    """Returns a batch of the examples. With `streams`, three of them are an expert's, and two of those are supervised."""
    chosen = [examples()[i] for i in order]
    return pack([_of_stream(example) for example in chosen] if streams else chosen, layout, PROCESSOR)


def _of_stream(example: Example) -> Example:
    number = int(example.name.split("-")[-1])
    values = {"expert": number in (1, 4, 6), "supervised": number in (1, 6), "mu": 0.3}
    extras = {name: np.full(len(example.token_ids), value, np.float32) for name, value in values.items()}
    if number in (1, 4, 6):
        extras["old_logprobs"] = np.zeros(len(example.token_ids), np.float32)
    return dataclasses.replace(example, extras=example.extras | extras)
