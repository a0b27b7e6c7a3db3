"""Draws the masks of a turn on an image: the outline of each object in a colour of its own."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.processing.masks import nearest

# As in reports. The ninth object has the first colour again.
COLOURS = (
    (0xFF, 0xC1, 0x3D),
    (0xFF, 0x6F, 0xAE),
    (0x5F, 0xD9, 0x7A),
    (0xB9, 0x9B, 0xFF),
    (0xFF, 0x7A, 0x4D),
    (0xC9, 0xE2, 0x65),
    (0xF4, 0xB6, 0xC8),
    (0xD3, 0xA0, 0x6A),
)


def object_colours(masks: Sequence[ObjectMask]) -> list[tuple[int, int, int]]:
    """Returns the colour of each mask. Objects have colours in the order of their first mention."""
    names = list(dict.fromkeys(one.name for one in masks))
    return [COLOURS[names.index(one.name) % len(COLOURS)] for one in masks]


def outlined(image: Image.Image, masks: Sequence[ObjectMask], width: int) -> Image.Image:
    """Returns an RGB copy of an image with the outlines of masks of this image, or of a larger or smaller copy of it.

    Small masks lie over large ones.

    Args:
      width: Width of an outline, which lies within its mask (pixels).
    """
    from scipy.ndimage import binary_erosion

    pixels = np.array(image.convert("RGB"))
    found = [(one.mask, colour) for one, colour in zip(masks, object_colours(masks), strict=True) if one.mask is not None]
    for mask, colour in sorted(found, key=lambda pair: -pair[0].area):
        array = nearest(mask.array, image.height, image.width)
        pixels[array & ~np.asarray(binary_erosion(array, iterations=width), bool)] = colour
    return Image.fromarray(pixels)
