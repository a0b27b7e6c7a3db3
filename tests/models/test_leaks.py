"""What can reach what, by gradients: exactly zero from everything that an output must not see, and from nothing else.

One random direction of each output is pulled back to every input. An input that reaches an output has a gradient there
that is not zero; what a mask keeps away has one of exactly zero, whatever the numbers.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.qwen2_5_vl.config import VisionConfig
from vitar_jax.models.qwen2_5_vl.vision import VisionTower
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack

PROCESSOR = tiny.processor(6)
CLASS = PROCESSOR.size_classes[0]


@partial(jax.jit, static_argnums=0)
def reached(function: Callable[[jax.Array], jax.Array], inputs: jax.Array) -> jax.Array:
    """bool [n, m]: whether output n, a row of `function(inputs)`, has a gradient at input m, a row of `inputs`."""
    outputs, pull = jax.vjp(function, inputs)
    directions = jnp.eye(len(outputs))[:, :, None] * jax.random.normal(jax.random.key(1), outputs.shape)
    # One by one: on the CPU, jaxlib 0.10.2 gets some sums of a batch of gradients wrong.
    return jax.lax.map(lambda direction: (pull(direction)[0] != 0).any(axis=-1), directions)


def same(groups: np.ndarray, others: np.ndarray) -> np.ndarray:
    return groups[:, None] == others[None]


# The vision tower: features (one for each 4 slots) and slots


def vision_config(*full: int) -> VisionConfig:
    return VisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=16,
        fullatt_block_indexes=full,
        window_size=tiny.WINDOW,
    )


def reached_in_tower(config: VisionConfig, batch: Batch) -> np.ndarray:
    """bool [features, slots] over all images of a batch of one bin, where both are no padding."""
    pixels, patch_positions = batch.pixels[0], batch.patch_positions[0]
    tower = VisionTower(config, key=jax.random.key(0), std=None, remat="none", attention="xla")

    def features(flat: jax.Array) -> jax.Array:
        return tower(flat.reshape(pixels.shape), patch_positions, jnp.dtype("float32")).reshape(-1, config.out_hidden_size)

    taken = patch_positions[..., 0].reshape(-1) >= 0
    found = np.asarray(reached(features, pixels.reshape(-1, pixels.shape[-1])))
    assert not found[taken[::4]][:, ~taken].any()  # no padding reaches anything
    return found[taken[::4]][:, taken]


def vision_batch(parts: list[tiny.Part]) -> tuple[Batch, np.ndarray]:
    """Images and videos as one batch, and for each slot that is taken, its number among all slots."""
    example = tiny.example("seen", parts, PROCESSOR)
    rows = sum(grid[0] for grid in example.grids) + 1  # one row of the tower stays empty
    batch = pack([example], BatchShape(1, 1, 200, rows, CLASS, 200), PROCESSOR)
    return batch, np.flatnonzero(batch.patch_positions[..., 0].reshape(-1) >= 0)


@pytest.mark.slow
def test_a_window_reaches_no_other_before_the_first_full_layer() -> None:
    batch, slots = vision_batch([noise(84, 140, seed=1), noise(112, 84, seed=2)])
    window = slots // CLASS.window_patches
    assert len(set(window)) == 6 + 4
    assert np.array_equal(reached_in_tower(vision_config(), batch), same(window[::4], window))


@pytest.mark.slow
@pytest.mark.parametrize("full", [(0,), (1,), (0, 1)])
def test_an_image_reaches_all_of_itself_and_no_other(full: tuple[int, ...]) -> None:
    batch, slots = vision_batch([noise(84, 140, seed=1), noise(112, 84, seed=2)])
    image = slots // CLASS.slots
    assert len(set(image)) == 2
    assert np.array_equal(reached_in_tower(vision_config(*full), batch), same(image[::4], image))


@pytest.mark.slow
def test_slices_of_a_video_do_not_reach_each_other_in_the_tower() -> None:
    batch, slots = vision_batch([tiny.clip(3, 3, 2, seconds=1.0), noise(56, 56)])
    step = slots // CLASS.slots
    assert len(set(step)) == 3 + 1
    assert np.array_equal(reached_in_tower(vision_config(1), batch), same(step[::4], step))


# The decoder: hidden states and embeddings


@pytest.mark.slow
def test_a_token_is_reached_by_what_stands_before_it_in_its_own_sample() -> None:
    model = tiny.pretrained()[1].model
    segment_ids = np.array([[1] * 5 + [2] * 7 + [3] + [0] * 3])
    length = segment_ids.shape[1]
    position_ids = np.broadcast_to(np.arange(length), (1, 3, length))
    embeddings = jax.random.normal(jax.random.key(0), (length, model.config.hidden_size))
    found = np.asarray(reached(lambda x: model(x[None], position_ids, segment_ids)[0], embeddings))
    real = segment_ids[0] > 0
    expected = same(segment_ids[0], segment_ids[0]) & np.tri(length, dtype=bool)
    assert np.array_equal(found[real], expected[real])


# The whole model: hidden states of tokens and images


@cache
def examples() -> tuple[Example, ...]:
    return (
        tiny.example("an image", ["Look", noise(84, 84, seed=1), "Which texture is it?"], PROCESSOR),
        tiny.example("a video", [tiny.clip(2, 2, 2, seconds=1.5), "Where?"], PROCESSOR, ["zoom"], [noise(84, 56), "Now?"]),
        tiny.example("text", ["Where is the lesion?"], PROCESSOR),
    )


@pytest.mark.slow
def test_an_image_reaches_what_follows_it_in_its_own_sample() -> None:
    batch = pack(examples(), BatchShape(1, 1, 96, 5, CLASS, 96), PROCESSOR)
    assert batch.segment_ids.max() == len(examples())  # all in one row
    segment_ids, vision_index = batch.segment_ids[0, 0], batch.vision_index[0, 0]
    inputs = {name: array for name, array in batch.inputs.items() if name != "pixels"}
    # Fresh weights: those of the parity tests make attention so sharp that some gradients are too small for fp32.
    model = jax.jit(lambda: Qwen2_5_VL(tiny.pretrained()[1].config, key=jax.random.key(0)))()

    def hidden(images: jax.Array) -> jax.Array:
        return model(pixels=images.reshape(batch.pixels.shape), **inputs)[0, 0]

    found = np.asarray(reached(hidden, batch.pixels.reshape(5, -1)))
    image_of = np.where(vision_index < 0, -1, vision_index // PROCESSOR.features(CLASS))
    assert set(image_of) == {-1, 0, 1, 2, 3}  # one image; two slices and an image; an empty row
    for image in range(4):
        first, sample = np.flatnonzero(image_of == image)[0], segment_ids[image_of == image][0]
        expected = (segment_ids == sample) & (np.arange(96) >= first)
        real = segment_ids > 0
        assert np.array_equal(found[real, image], expected[real]), image
    assert not found[:, 4].any()
