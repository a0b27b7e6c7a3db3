"""Mask targets of an example, and of a device batch.

An entry of the batch holds the targets of one example: `[SEG]` tokens of its row, a mask for each, and the image of the masks.
Not every row needs an entry.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

BITS = 8  # pixels per byte of a target
SCALE = 4  # pixels of SAM 2's image per pixel of a mask, in height and width


@dataclasses.dataclass(frozen=True)
class ExampleMasks:
    """The mask targets of an example.

    Attributes:
      pixels: Image 0, from `masks.ground_pixels`.
      positions: Index of each mask's `[SEG]` token among the example's tokens.
      targets: The masks.
      draw: Number that determines the points at which the loss reads the masks, a 32-bit number.
    """

    pixels: UInt8[np.ndarray, "side side 3"]
    positions: Int[np.ndarray, " masks"]
    targets: Bool[np.ndarray, "masks side/4 side/4"]
    draw: int


@dataclasses.dataclass(frozen=True)
class MaskShape:
    """The static shape of the masks of a batch.

    Attributes:
      side: Side of SAM 2's image.
      images, entries: Number of images and of entries per bin.
      masks: Number of masks per entry.
    """

    side: int
    images: int
    entries: int
    masks: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskBatch:
    """The masks of a device batch, numpy arrays on the host and `jax.Array`s on the devices.

    Attributes:
      pixels: uint8 [bins, images, side, side, 3].
      image, row: int32 [bins, entries], each entry's image and row in its bin.
      positions: int32 [bins, entries, masks], index of the `[SEG]` token in the row; -1 without a mask.
      targets: uint8 [bins, entries, masks, side/4, side/32], the masks' pixels as bits (`numpy.packbits`).
      draws: uint32 [bins, entries], numbers that determine the points at which the loss reads the masks.
    """

    pixels: Any
    image: Any
    row: Any
    positions: Any
    targets: Any
    draws: Any

    @property
    def valid(self) -> Bool[Array, "bins entries masks"]:
        """Whether an entry has a mask at a place."""
        return self.positions >= 0

    def unpacked(self) -> Bool[Array, "bins entries masks side/4 side/4"]:
        """Returns the masks on the devices."""
        return jnp.unpackbits(self.targets, axis=-1).astype(bool)


class MaskRoom:
    """The room for masks that is left in a bin."""

    def __init__(self, shape: MaskShape):
        self.shape = shape
        self.entries = 0
        self.images: dict[str, int] = {}  # content id -> index in the bin

    def has_room(self, masks: ExampleMasks, content: str) -> bool:
        """Returns whether an example's masks fit, on an image with this content id."""
        return (
            len(masks.positions) <= self.shape.masks
            and self.entries < self.shape.entries
            and (content in self.images or len(self.images) < self.shape.images)
        )

    def take(self, content: str) -> tuple[int, int]:
        """Takes the next entry for masks on an image with this content id. Returns the entry and the image's index."""
        self.entries += 1
        return self.entries - 1, self.images.setdefault(content, len(self.images))


def write_masks(arrays: MaskBatch, masks: ExampleMasks, entry: int, image: int, row: int, start: int) -> None:
    """Writes the masks of an example whose tokens begin at `start` of a row to a bin's part of the batch."""
    count = len(masks.positions)
    arrays.pixels[image] = masks.pixels
    arrays.image[entry], arrays.row[entry], arrays.draws[entry] = image, row, masks.draw
    arrays.positions[entry, :count] = masks.positions + start
    arrays.targets[entry, :count] = np.packbits(masks.targets, axis=-1)
