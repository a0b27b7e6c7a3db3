"""Regions: boxes and masks, each in a stated pixel space, its frame.

Coordinates are continuous: (x1, y1) is the upper left corner and (x2, y2) the lower right one. The box that covers exactly the
first pixel is (0, 0, 1, 1), and a width is x2 - x1. Sizes are (width, height), as in PIL.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool

Frame = Literal["original", "model_input", "normalized", "normalized_1000"]
Unit = Literal["", "pixels", "normalized", "1000"]
Size = tuple[int, int]

FRAMES: tuple[Frame, ...] = get_args(Frame)
UNITS: tuple[Unit, ...] = get_args(Unit)[1:]
FIRST_PIXELS = 2.0  # a box that ends so close to the corner is probably in shares (in sums of them, if corners came as sizes)
LEAST_CHANCE = 0.05  # of boxes in pixels that could also be in thousandths
OVERHANG = 0.5  # pixels by which rounding may move an edge out of the image


@dataclass(frozen=True)
class Box:
    """A rectangle of positive area in one frame.

    Frame `original` is in pixels of the image as loaded, `model_input` in pixels of the resized image that the model sees, and
    `normalized` runs from 0 to 1 along each side, and `normalized_1000` from 0 to 1000.

    Raises:
      ValueError: If a coordinate is not finite, a side is not positive, or the frame is unknown.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ValueError(f"box frame: got {self.frame!r}, expected one of {', '.join(FRAMES)}")
        if not all(math.isfinite(value) for value in self.xyxy):
            raise ValueError(f"box {self.xyxy}: expected finite coordinates")
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError(f"box {self.xyxy} is empty; expected x2 > x1 and y2 > y1")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return self.x1, self.y1, self.x2, self.y2

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        return self.width * self.height


@dataclass(frozen=True)
class Mask:
    """A set of pixels, run-length encoded as in COCO.

    Attributes:
      shape: (height, width) of the array. In frame "normalized", the array covers the whole image at any resolution.
      counts: Lengths of alternating runs of zeros and ones, column by column, as COCO's compressed string.

    Raises:
      ValueError: If the shape is not positive, the frame is unknown, or the runs do not fill the shape.
    """

    shape: tuple[int, int]
    frame: Frame
    counts: bytes

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ValueError(f"mask frame: got {self.frame!r}, expected one of {', '.join(FRAMES)}")
        if min(self.shape) <= 0 or min(self.runs, default=0) < 0 or sum(self.runs) != math.prod(self.shape):
            raise ValueError(f"mask: got runs of {sum(self.runs)} pixels, expected shape {self.shape} to be filled")

    @classmethod
    def of(cls, array: Bool[np.ndarray, "y x"], frame: Frame) -> "Mask":
        """Returns the mask of an array."""
        pixels = np.asarray(array, bool).ravel(order="F")
        edges = np.flatnonzero(np.diff(pixels, prepend=False, append=not pixels[-1]))
        return cls(array.shape, frame, _compress(np.diff(edges, prepend=0).tolist()))

    @classmethod
    def from_coco(cls, value: Any) -> "Mask":
        """Reads COCO's run lengths in frame "original": {"size": [height, width], "counts": compressed string or list of runs}.

        Raises:
          ValueError: If the value is malformed.
        """
        try:
            (height, width), counts = value["size"], value["counts"]
            counts = counts.encode("ascii") if isinstance(counts, str) else _compress([int(run) for run in counts])
            return cls((int(height), int(width)), "original", counts)
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"got no run lengths of COCO, {{size, counts}} ({error!r})") from error

    @cached_property
    def runs(self) -> list[int]:
        """Lengths of alternating runs of zeros and ones, column by column. The first one may be 0."""
        return _expand(self.counts)

    @property
    def array(self) -> Bool[np.ndarray, "y x"]:
        pixels = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs)
        return pixels.reshape(self.shape, order="F")

    @property
    def area(self) -> float:
        """Area in pixels, or as a fraction of the image in frame "normalized"."""
        pixels = sum(self.runs[1::2])
        return pixels / math.prod(self.shape) if self.frame == "normalized" else float(pixels)

    @property
    def box(self) -> Box:
        """The smallest box around the mask.

        Raises:
          ValueError: If the mask is empty.
        """
        y, x = np.nonzero(self.array)
        if not len(x):
            raise ValueError("an empty mask has no box")
        height, width = self.shape if self.frame == "normalized" else (1, 1)
        edges = x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height
        return Box(*map(float, edges), frame=self.frame)


Region = Box | Mask


def bounding_box(region: Region) -> Box:
    """Returns the smallest box around a region, in the region's frame.

    Raises:
      ValueError: If a mask is empty.
    """
    return region.box if isinstance(region, Mask) else region


def region_to_json(region: Region) -> Any:
    """Returns a region as JSON. A box is [x1, y1, x2, y2], with its frame appended unless "original". A mask is an object."""
    if isinstance(region, Mask):
        return {"shape": region.shape, "frame": region.frame, "counts": region.counts.decode("ascii")}
    return [*region.xyxy] if region.frame == "original" else [*region.xyxy, region.frame]


def region_from_json(value: Any) -> Region:
    """Reads a region that `region_to_json` wrote.

    Raises:
      ValueError: If the value is not a region.
    """
    try:
        if isinstance(value, dict):
            height, width = value["shape"]
            return Mask((int(height), int(width)), value["frame"], value["counts"].encode("ascii"))
        *edges, frame = value if len(value) == 5 else [*value, "original"]
        return Box(*map(float, edges), frame=frame)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"got {value!r}, expected a box [left, upper, right, lower] or a mask ({error})") from error


def _compress(runs: list[int]) -> bytes:
    """Returns COCO's compressed string: 5 bits per character, lowest bits first.

    From the fourth run on, stores the difference to the run two before.
    """
    text = bytearray()
    for i, run in enumerate(runs):
        rest = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)  # in the last character, the highest bit is the sign
            text.append(48 + bits + 32 * more)
    return bytes(text)


def _expand(text: bytes) -> list[int]:
    """Returns the runs of a string that `_compress` made. Raises ValueError if the string ends within a run."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return runs


def centre(box: Box) -> tuple[float, float]:
    """Returns the centre (x, y) of a box, in the box's frame."""
    return box.x1 + box.width / 2, box.y1 + box.height / 2


def iou(a: Box, b: Box) -> float:
    """Returns the intersection over union, in [0, 1].

    Raises:
      ValueError: If the boxes are in different frames.
    """
    if a.frame != b.frame:
        raise ValueError(f"iou: got boxes in frames {a.frame!r} and {b.frame!r}, expected one frame")
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return min(1.0, shared / (a.area + b.area - shared))


def to_frame(box: Box, frame: Frame, original_size: Size, model_input_size: Size) -> Box:
    """Converts a box to another frame. Sizes are (width, height) of the image in the two pixel frames.

    Raises:
      ValueError: If a size is not positive, the frame is unknown, or the box is so thin that rounding makes it empty.
    """
    if frame not in FRAMES:
        raise ValueError(f"box frame: got {frame!r}, expected one of {', '.join(FRAMES)}")
    width, height = _size_in(box.frame, original_size, model_input_size)
    new_width, new_height = _size_in(frame, original_size, model_input_size)
    if frame == box.frame:
        return box
    return Box(
        box.x1 * new_width / width,
        box.y1 * new_height / height,
        box.x2 * new_width / width,
        box.y2 * new_height / height,
        frame,
    )


def clip(box: Box, size: tuple[float, float]) -> Box:
    """Returns the part of a box inside an image of this (width, height), which is (1, 1) for a normalized box.

    Raises:
      ValueError: If the box lies outside, or the size is not positive.
    """
    width, height = size
    if width <= 0 or height <= 0:
        raise ValueError(f"image size: got {size}, expected positive numbers")
    x1, x2 = max(box.x1, 0.0), min(box.x2, width)
    y1, y2 = max(box.y1, 0.0), min(box.y2, height)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {box.xyxy} lies outside an image of {width} x {height}")
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def declared(box: Box, unit: Unit) -> Box:
    """Returns a box from a file, whose numbers are read in frame "original", in the frame that its unit stands for.

    A box in another frame has already been declared and is returned unchanged.

    Args:
      unit: "pixels", "normalized" (shares of the sides, from 0 to 1) or "1000" (thousandths of the sides). If empty, the box is
        in pixels, unless it ends within the first `FIRST_PIXELS` pixels: it is then probably in shares.

    Raises:
      ValueError: If no unit is given and the box is probably in shares.
    """
    if box.frame != "original" or unit == "pixels":
        return box
    if not unit:
        if max(box.x2, box.y2) <= FIRST_PIXELS:
            raise ValueError(
                f"got box {box.xyxy}, which looks like shares from 0 to 1, expected pixels; declare another unit with --boxes "
                f"(in a recipe's source: boxes=): {', '.join(UNITS)}"
            )
        return box
    whole = 1000 if unit == "1000" else 1
    return Box(*(edge / whole for edge in box.xyxy), frame="normalized")


def refuse_thousandths(sizes: Iterable[Size], furthest: float) -> None:
    """Refuses undeclared boxes of a file that are probably in thousandths of the sides.

    Boxes in thousandths end within 1000. If boxes in pixels lay anywhere, those of an image larger than that would all end
    within its first 1000 pixels with a probability of at most 1000 / width * 1000 / height. A lower product over all images
    than `LEAST_CHANCE` is not believed.

    Args:
      sizes: (width, height) of each image with boxes. Those of small images say nothing.
      furthest: The largest right or lower edge of all boxes.

    Raises:
      ValueError: If the boxes are probably in thousandths.
    """
    large = [size for size in sizes if max(size) > 1000]
    chance = math.prod(min(1.0, 1000 / side) for size in large for side in size)
    if furthest <= 1000 and chance < LEAST_CHANCE:
        raise ValueError(
            f"got boxes that all end within 1000, on images of up to {max(map(max, large))} pixels, which look like "
            f"thousandths of the sides; declare the unit with --boxes (in a recipe's source: boxes=): {', '.join(UNITS)}"
        )


def inside(box: Box, size: Size) -> Box:
    """Returns an annotated box in pixels of its image of this (width, height), without an overhang of up to `OVERHANG` pixels.

    Raises:
      ValueError: If the box exceeds the image by more.
    """
    box = to_frame(box, "original", size, size)
    overhang = max(-box.x1, -box.y1, box.x2 - size[0], box.y2 - size[1])
    if overhang > OVERHANG:
        raise ValueError(f"got box {box.xyxy}, expected one within the image of size {size[0]} x {size[1]}")
    return clip(box, size) if overhang > 0 else box


def _size_in(frame: Frame, original_size: Size, model_input_size: Size) -> tuple[float, float]:
    sizes = {"original": original_size, "model_input": model_input_size, "normalized": (1, 1), "normalized_1000": (1000, 1000)}
    size = sizes[frame]
    if size[0] <= 0 or size[1] <= 0:
        raise ValueError(f"image size in frame {frame!r}: got {size}, expected positive numbers")
    return size
