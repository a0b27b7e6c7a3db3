"""Affine maps between the pixels of two images. They carry regions from an edited image to its source."""

import dataclasses
import math
from collections.abc import Sequence

from vitar_jax.episodes.regions import Box, Size

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclasses.dataclass(frozen=True)
class Affine:
    """The map from the point (x, y) to (a x + b y + c, d x + e y + f). The default is the identity.

    Points are continuous pixel coordinates (frame "original") on both sides.

    Raises:
      ValueError: If a coefficient is not finite, or the map has no inverse.
    """

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, dataclasses.astuple(self))) or not self.determinant:
            raise ValueError(f"{self}: expected finite coefficients and an invertible map")

    @classmethod
    def crop(cls, box: Box, size: Size) -> "Affine":
        """Returns the map from an image of this (width, height), which shows only `box`, to the image that the box is on."""
        return cls(a=box.width / size[0], c=box.x1, e=box.height / size[1], f=box.y1)

    @classmethod
    def rotation(cls, degrees: float, size: Size) -> tuple["Affine", Size]:
        """Returns the map from an image, rotated clockwise, to its source of this (width, height), and the image's size.

        The rotated image has the smallest size in whole pixels that shows the whole source, whose centre is its centre.
        """
        # Rounded so that quarter turns are exact.
        cos, sin = (round(function(math.radians(degrees)), 15) for function in (math.cos, math.sin))
        across, down = size
        width, height = (
            math.ceil(round(abs(cos) * one + abs(sin) * other, 9)) for one, other in ((across, down), (down, across))
        )
        c = (across - cos * width - sin * height) / 2
        f = (down + sin * width - cos * height) / 2
        return cls(cos, sin, c, -sin, cos, f), (width, height)

    @property
    def determinant(self) -> float:
        return self.a * self.e - self.b * self.d

    def after(self, first: "Affine") -> "Affine":
        """Returns the map that applies `first` and then this one."""
        return Affine(
            self.a * first.a + self.b * first.d,
            self.a * first.b + self.b * first.e,
            self.a * first.c + self.b * first.f + self.c,
            self.d * first.a + self.e * first.d,
            self.d * first.b + self.e * first.e,
            self.d * first.c + self.e * first.f + self.f,
        )

    def inverse(self) -> "Affine":
        scale = self.determinant
        a, b, d, e = self.e / scale, -self.b / scale, -self.d / scale, self.a / scale
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def point(self, x: float, y: float) -> tuple[float, float]:
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def box(self, corners: Sequence[float]) -> Corners:
        """Returns the smallest upright box around a mapped box."""
        x1, y1, x2, y2 = corners
        xs, ys = zip(*(self.point(x, y) for x in (x1, x2) for y in (y1, y2)), strict=True)
        return min(xs), min(ys), max(xs), max(ys)


IDENTITY = Affine()
