"""Boxes that know which pixel space they live in.

Coordinates are continuous: (x1, y1) is the upper left edge, (x2, y2) the lower right one, so a box that
covers exactly the first pixel is (0, 0, 1, 1) and a width is x2 - x1. Sizes are (width, height), as in PIL.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

Frame = Literal["original", "model_input", "normalized"]
Size = tuple[int, int]

FRAMES: tuple[Frame, ...] = get_args(Frame)


@dataclass(frozen=True)
class Box:
    """A rectangle of positive area in one frame.

    `original` counts pixels of the image as it came, `model_input` those of the resized image that the
    model sees, `normalized` runs from 0 to 1 along each side.

    Raises:
        ValueError: a coordinate is not finite, a side is not positive, or the frame is unknown.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise ValueError(f"box frame {self.frame!r} is not one of {', '.join(FRAMES)}")
        if not all(math.isfinite(value) for value in self.xyxy):
            raise ValueError(f"box {self.xyxy} has a coordinate that is not finite")
        if self.x2 <= self.x1 or self.y2 <= self.y1:
            raise ValueError(f"box {self.xyxy} is empty: it needs x2 > x1 and y2 > y1")

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


def centre(box: Box) -> tuple[float, float]:
    """(x, y) of the middle of the box, in the box's own frame."""
    return box.x1 + box.width / 2, box.y1 + box.height / 2


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1].

    Raises:
        ValueError: the boxes live in different frames, where the number would mean nothing.
    """
    if a.frame != b.frame:
        raise ValueError(f"cannot compare a box in frame {a.frame!r} with one in {b.frame!r}")
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return min(1.0, shared / (a.area + b.area - shared))


def to_frame(box: Box, frame: Frame, original_size: Size, model_input_size: Size) -> Box:
    """The same region in another frame. Sizes are (width, height) of the image in the two pixel frames.

    Raises:
        ValueError: a size is not positive, the frame is unknown, or the box is so thin that rounding
        empties it.
    """
    if frame not in FRAMES:
        raise ValueError(f"box frame {frame!r} is not one of {', '.join(FRAMES)}")
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
    """The part of the box inside an image of this (width, height); for a normalized box the size is (1, 1).

    Raises:
        ValueError: nothing of the box lies inside, or the size is not positive.
    """
    width, height = size
    if width <= 0 or height <= 0:
        raise ValueError(f"image size {size} is not positive")
    x1, x2 = max(box.x1, 0.0), min(box.x2, width)
    y1, y2 = max(box.y1, 0.0), min(box.y2, height)
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {box.xyxy} lies outside an image of {width} x {height}")
    return replace(box, x1=x1, y1=y1, x2=x2, y2=y2)


def _size_in(frame: Frame, original_size: Size, model_input_size: Size) -> tuple[float, float]:
    size = {"original": original_size, "model_input": model_input_size, "normalized": (1, 1)}[frame]
    if size[0] <= 0 or size[1] <= 0:
        raise ValueError(f"image size {size} in frame {frame!r} is not positive")
    return size
