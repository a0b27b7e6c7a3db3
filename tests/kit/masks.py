"""A tiny Sa2VA that plays: its weights, and a protocol whose turns look at the image and mark objects."""

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.kit import tiny, tiny_qwen3, tiny_sa2va, tiny_sam2, vrt
from tests.kit.rollout import BLIND, LIMITS, SIZES, Blind, sample
from vitar_jax.episodes.actions import ParsedTurn, ToolCall
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.sa2va.model import Sa2VA
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

SEG = vrt.chat().token_id("[SEG]")


class Marking(Blind):
    """A blind protocol whose empty turns look too, since many are empty."""

    def read(self, text: str) -> ParsedTurn:
        return super().read(text or "look")


MARKING = Marking(**vars(BLIND) | {"name": "marking", "allowed_tokens": ("[SEG]",)})


class Outlining(Blind):
    """A protocol whose turns all ask to see their own masks."""

    def read(self, text: str) -> ParsedTurn:
        return ParsedTurn(None, {"name": "outline"}, ToolCall("outline"))


OUTLINING = Outlining(**vars(MARKING) | {"name": "outlining", "tools": ("outline",)})
KEPT = 3  # masks of a turn


@cache
def model() -> Sa2VA:
    """Returns a model whose masks depend on states and on the image: no weights of SAM 2 or the bridge overwhelm the others."""
    with tempfile.TemporaryDirectory() as directory:
        made = load_pretrained(tiny_sa2va.write(Path(directory), tiny_sa2va.tensors()))
    assert isinstance(made, Sa2VA)
    made.sam2 = tiny_sam2.pretrained("windows divide")[1]
    for linear in (made.bridge.fc1, made.bridge.fc2):
        linear.kernel[...] *= 3 * linear.kernel.shape[0] ** -0.5
    assert made.lm_head is not None
    made.lm_head.kernel[...] *= 0.1  # so that every token is drawn now and then
    return made


@cache
def view() -> RolloutWeights:
    return rollout_weights(model())


def processor() -> Processor:
    return dataclasses.replace(tiny_qwen3.processor(), chat=vrt.chat())


@cache
def banned() -> np.ndarray:
    """Returns the mask of banned ids. `[SEG]` is one of few others, so that turns have several."""
    chat = vrt.chat()
    kept = [*chat.text("1 2"), chat.im_end, SEG]
    return ~np.isin(np.arange(tiny.VOCAB), kept)


@cache
def engine(slots: int = SIZES.slots) -> Engine:
    sizes = dataclasses.replace(SIZES, slots=slots, turn_masks=KEPT, mask_rows=2)
    return Engine(sizes, processor(), LIMITS, banned())


def episodes(count: int, group_size: int = 1, protocol: Protocol = MARKING) -> list[Episode]:
    leaders = [Episode(sample(index), protocol, processor(), LIMITS) for index in range(count)]
    return [leader.fork(member) for leader in leaders for member in range(group_size)]


@jax.jit
def states_of(model: Sa2VA, inputs: Any) -> jax.Array:
    """Returns the last hidden states of a batch, as training computes them."""
    return model(**inputs)


@jax.jit
def masks_of(model: Sa2VA, pixels: Any, states: Any) -> tuple[jax.Array, jax.Array]:
    """Returns logits and predicted IoUs of the masks of one image [side, side, 3] and states [masks, D]."""
    maker = model.mask_maker
    maps = jax.tree.map(lambda leaf: leaf[0], maker.image_maps(pixels[None, None], model.config.dtype))
    made = maker.masks(maps, states[None])
    return made.best()[0], made.ious[0].max(axis=-1)
