"""Rotary angles: Hugging Face's, in fp32 also where the model computes in bf16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, apply_rotary_pos_emb

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.rope import mrope, rotate
from vitar_jax.processing.packing import BatchShape, pack


@pytest.mark.slow
def test_rotation_by_three_axes_equals_hugging_faces() -> None:
    config = tiny.hf_config().text_config
    rng = np.random.default_rng(0)
    position_ids = rng.integers(0, 5000, (3, 2, 7))
    q, k = rng.normal(size=(2, 2, 4, 7, 16)).astype(np.float32)
    rotary = Qwen2_5_VLRotaryEmbedding(config)
    cos, sin = rotary(torch.tensor(q), torch.tensor(position_ids))
    expected = apply_rotary_pos_emb(torch.tensor(q), torch.tensor(k), cos, sin)
    ours = mrope(np.moveaxis(position_ids, 0, 1), 16, 1e4, (2, 3, 3))
    for x, theirs in zip((q, k), expected, strict=True):
        turned = rotate(jnp.asarray(np.swapaxes(x, 1, 2)), ours)
        np.testing.assert_allclose(np.swapaxes(turned, 1, 2), theirs.numpy(), rtol=1e-3, atol=1e-3)


def test_angles_are_fp32_and_the_result_keeps_its_type() -> None:
    rotary = mrope(np.array([[[256, 257]] * 3]), 16, 1e4, (2, 3, 3))
    assert {part.dtype for part in rotary} == {jnp.dtype("float32")}
    assert rotate(jnp.ones((1, 2, 1, 16), jnp.bfloat16), rotary).dtype == jnp.bfloat16


def half(model: Qwen2_5_VL) -> Qwen2_5_VL:
    """The model in bf16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.with_config(model, dtype="bfloat16"))


def bf16_states(model: Qwen2_5_VL, shift: int) -> np.ndarray:
    """Hidden states of one text, all of it `shift` places later."""
    using = tiny.processor(4)
    example = tiny.example("text", ["Which texture is it and where is the lesion? " * 2], using)
    shape = BatchShape(1, 1, 64, 1, using.size_classes[0], 64)
    batch = pack([dataclasses.replace(example, position_ids=example.position_ids + shift)], shape, using)
    return np.asarray(jax.jit(lambda m, b: m(**b))(model, batch.inputs), np.float32)[batch.segment_ids > 0]


@pytest.mark.slow
@pytest.mark.parametrize("shift", [2048, 100_000])
def test_a_bf16_model_sees_distances_and_not_places(shift: int) -> None:
    """Rotary attention looks at differences alone. In bf16 there are but 8 places from 2048 to 2175."""
    model = half(tiny.pretrained()[1])
    here, there = bf16_states(model, 0), bf16_states(model, shift)
    assert np.linalg.norm(here - there) <= 0.1 * np.linalg.norm(here)


@pytest.mark.slow
def test_a_bf16_tower_sees_distances_and_not_places() -> None:
    """An image in the upper left and the same one far down to the right: bf16 angles would tell them apart."""
    tower = half(tiny.pretrained()[1]).visual
    using = tiny.processor(6)
    image = using.process(noise(112, 84))
    pixels, patch_positions, slots = using.arrange(image.patches, image.grid_thw, using.size_classes[0])

    def features(shift: int) -> np.ndarray:
        places = np.where(patch_positions < 0, -1, patch_positions + shift)
        return np.asarray(tower(pixels[None], places[None], jnp.dtype("bfloat16")), np.float32)[0, slots]

    here, there = features(0), features(1000)
    assert np.linalg.norm(here - there) <= 0.1 * np.linalg.norm(here)
