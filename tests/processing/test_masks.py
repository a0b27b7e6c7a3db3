"""Masks and logits of another size, against torch, the pixels that SAM 2 reads, against PIL, and the longest diameter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vitar_jax.processing.masks import bilinear, full_size, ground_pixels, longest_diameter, nearest

SIZES = [((7, 5), (16, 16)), ((40, 33), (16, 16)), ((16, 16), (16, 16)), ((1, 3), (4, 2)), ((300, 200), (256, 256))]


@pytest.mark.parametrize("old, new", SIZES)
def test_masks_take_the_nearest_of_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((2, *old)) < 0.5
    expected = torch.nn.functional.interpolate(torch.tensor(masks)[None].float(), size=new, mode="nearest")[0] > 0
    np.testing.assert_array_equal(nearest(masks, *new), expected.numpy())


@pytest.mark.parametrize("old, new", SIZES)
def test_maps_are_resized_as_by_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(2, *old)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(maps)[None], size=new, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(bilinear(maps, *new), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_full_size_is_two_steps() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
    larger = torch.nn.functional.interpolate(torch.tensor(logits)[None], size=(64, 64), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.interpolate(larger, size=(90, 50), mode="bilinear", align_corners=False)[0]
    found = full_size(logits, 64, 90, 50)
    assert (found != (expected.sigmoid() > 0.5).numpy()).mean() < 1e-3  # a logit of 0 within rounding


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "CMYK"])
def test_ground_pixels_are_a_square_resized_as_published(mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).convert(mode)
    expected = np.asarray(image.convert("RGB").resize((64, 64)))  # PIL's default is bicubic
    found = ground_pixels(image, 64)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_ground_pixels_window_deep_images() -> None:
    deep = np.linspace(0, 60_000, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = ground_pixels(Image.fromarray(deep), 64)
    assert (found.min(), found.max()) == (0, 255)


@settings(max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.floats(0.1, 3), st.floats(0.1, 3))
def test_the_longest_diameter_is_that_of_all_pairs_of_corners(mask: np.ndarray, rows: float, columns: float) -> None:
    corners = [(x * columns, y * rows) for v, u in np.argwhere(mask) for y in (v, v + 1) for x in (u, u + 1)]
    expected = max((math.dist(a, b) for a in corners for b in corners), default=0.0)
    assert longest_diameter(mask, rows=rows, columns=columns) == pytest.approx(expected)


def test_the_longest_diameter_of_a_large_disc_is_its_own() -> None:
    y, x = np.mgrid[:900, :1200] + 0.5
    mask = np.hypot(x - 600, y - 450) <= 400
    assert longest_diameter(mask) == pytest.approx(800, abs=1.5)
    assert longest_diameter(np.ones((1, 1), bool)) == pytest.approx(2**0.5)
