"""Models of all families, and batches for them, that are small enough for every test to compile its own train step."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.kit import tiny, tiny_qwen3
from tests.kit.images import noise
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, TextConfig, VisionConfig
from vitar_jax.models.qwen3_vl import config as qwen3_vl
from vitar_jax.models.registry import random_model
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack
from vitar_jax.processing.positions import SizeClass

PROCESSORS = {
    "qwen2_5_vl": tiny.processor(4),
    "qwen3_vl": dataclasses.replace(tiny_qwen3.processor(), size_classes=(SizeClass(1, 36),)),
}
PROCESSOR = PROCESSORS["qwen2_5_vl"]
CHAT = PROCESSOR.chat
BANNED = banned_tokens(CHAT, tiny.VOCAB)
TOLERANCE = 1e-5
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]  # data, fsdp, tensor
SIZES = [(56, 56), (84, 56), (56, 84), (84, 84), (112, 56), (56, 112), (70, 56), (56, 60)]


def _qwen2_5_vl() -> ModelConfig:
    """Returns one text layer, a windowed and a full vision layer.

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
    return Qwen2_5_VLConfig(text, vision)


def _qwen3_vl() -> ModelConfig:
    """Returns one text layer, two vision layers, the first of which DeepStack takes, and heads wider than the hidden size."""
    text = qwen3_vl.TextConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        mrope_section=(2, 2, 2),
        rope_theta=100.0,
    )
    vision = qwen3_vl.VisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=54,
        num_heads=2,
        out_hidden_size=32,
        deepstack_visual_indexes=(0,),
        num_position_embeddings=16,
    )
    return qwen3_vl.Qwen3VLConfig(text, vision)


CONFIGS = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}


@cache
def model(family: str = "qwen2_5_vl") -> Any:
    """Returns a small model of a family. Each test compiles its own program."""
    ids = (CHAT.image_pad, CHAT.vision_start, CHAT.vision_end, CHAT.token_id("<|video_pad|>"))
    names = ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id")
    config = dataclasses.replace(CONFIGS[family](), **dict(zip(names, ids, strict=True)))
    rng = np.random.default_rng(0)
    weights = jax.jit(lambda: random_model(config))()
    return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), weights)


def copy(family: str = "qwen2_5_vl") -> Any:
    """Returns a copy of the weights, which a step may donate."""
    return jax.tree.map(jnp.array, model(family))


@cache
def examples(family: str = "qwen2_5_vl") -> tuple[Example, ...]:
    """Returns one example with one image for each of eight bins, with advantages and slightly wrong old log-probabilities."""
    made = []
    for index, size in enumerate(SIZES):
        rng = np.random.default_rng(index)
        parts = [noise(*size, seed=index), " lesion" * (4 + index)]
        example = tiny.example(f"example-{index}", parts, PROCESSORS[family])
        allowed = np.flatnonzero(~BANNED)
        token_ids = np.where(example.loss_mask, rng.choice(allowed, len(example.token_ids)), example.token_ids)
        extras = {
            "advantages": np.full(len(token_ids), rng.normal(), np.float32),
            "old_logprobs": np.where(example.loss_mask, -rng.gamma(6.0, 1.0, len(token_ids)), 0).astype(np.float32),
        }
        made.append(dataclasses.replace(example, token_ids=token_ids.astype(np.int32), extras=extras))
    return tuple(made)


def shape(bins: int, *, rows: int = 0, tokens: int = 64, images: int = 0, family: str = "qwen2_5_vl") -> BatchShape:
    rows = rows or len(SIZES) // bins
    largest = PROCESSORS[family].size_classes[0]
    return BatchShape(bins, rows, tokens, images or len(SIZES) // bins, largest, policy_tokens=32 * rows)


def make_batch(
    layout: BatchShape, order: Sequence[int] = range(8), *, streams: bool = False, family: str = "qwen2_5_vl"
) -> Batch:
    """Returns a batch of the examples. With `streams`, three of them are an expert's, and two of those are supervised."""
    chosen = [examples(family)[i] for i in order]
    return pack([_of_stream(example) for example in chosen] if streams else chosen, layout, PROCESSORS[family])


def _of_stream(example: Example) -> Example:
    number = int(example.name.split("-")[-1])
    values = {"expert": number in (1, 4, 6), "supervised": number in (1, 6), "mu": 0.3}
    extras = {name: np.full(len(example.token_ids), value, np.float32) for name, value in values.items()}
    if number in (1, 4, 6):
        extras["old_logprobs"] = np.zeros(len(example.token_ids), np.float32)
    return dataclasses.replace(example, extras=example.extras | extras)
