"""Contrast-limited equalisation: the pixels of OpenCV, colours, and how far it may go."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from tests.kit.images import noise
from vitar_jax.processing.equalise import clahe


def pattern(rows: int, columns: int) -> Image.Image:
    y, x = np.mgrid[:rows, :columns]
    return Image.fromarray(((7 * y + 3 * x + x * y % 50) % 200).astype(np.uint8))


@pytest.mark.parametrize(
    "rows, columns, first, sha256",
    [  # opencv-python 5.0.0: cv2.createCLAHE(2.0, (8, 8)).apply(pattern)
        (64, 64, [8, 12, 16, 24, 32], "adcb351f287d1964"),
        (70, 90, [5, 7, 12, 17, 24], "2994892580821581"),
        (83, 61, [6, 9, 12, 20, 26], "459d801afffc2b92"),
        (9, 40, [42, 64, 85, 128, 142], "e921e53c4eedebf3"),
        (250, 333, [1, 4, 9, 14, 17], "73b7c2605f310f0c"),
    ],
)
def test_pixels_are_those_of_opencv(rows: int, columns: int, first: list[int], sha256: str) -> None:
    made = clahe(pattern(rows, columns))
    assert np.asarray(made)[0, :5].tolist() == first
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == sha256


def test_only_the_luminance_of_a_colour_image_changes() -> None:
    made = clahe(noise(48, 40))
    luminance, *_ = noise(48, 40).convert("YCbCr").split()
    assert made.mode == "RGB" and made.size == (48, 40)
    got, expected = (np.asarray(image, int) for image in (made.convert("YCbCr").split()[0], clahe(luminance)))
    inside = (np.asarray(made).min(-1) > 0) & (np.asarray(made).max(-1) < 255)  # elsewhere, no colour has that luminance
    assert inside.any() and np.abs(got - expected)[inside].max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (8, 1)])
def test_tiny_images_stay_images(size: tuple[int, int]) -> None:
    assert clahe(noise(*size, "L")).size == size
