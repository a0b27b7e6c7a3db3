"""Phantoms of CT whose lesion is visible in one window only, so that a policy has to choose the window by the organ.

A phantom holds Hounsfield units: an organ in a frame of air, a marker of metal, and a lesion in one quadrant of the organ. The
organ is lung, with the marker above it, or bone, with the marker beside it. The first view spans everything from air to a
metal much denser than any real one, so that one grey value covers 396 HU. Organ and lesion lie within one such value: the first
view shows which organ it is, and no pixel of it depends on the lesion. The organ's own window shows the lesion. All other
windows of `CT_WINDOWS` show the organ as uniformly black or white.

Each sample is a pure function of (seed, split, index).
"""

from dataclasses import KW_ONLY, dataclass
from typing import get_args

import numpy as np
from PIL import Image

from data_prep.phantom.items import Items
from data_prep.phantom.pictures import Split
from data_prep.phantom.samples import LETTERS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.episodes.tools import CT_WINDOWS
from vitar_jax.episodes.trajectory import Trajectory

# In Hounsfield units. Organs with noise and lesion stay within one grey value of the first view.
AIR, METAL = -1000.0, 100000.0
ORGANS = {"lung": -780.0, "bone": 450.0}  # named like the window that shows their lesions
NOISE = 15.0  # largest difference from the organ's value
CONTRAST = 250.0  # of a lesion

FRAME = 7  # pixels of air on each side
RADIUS = 9.0  # of a lesion, in pixels
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
QUESTION = "Where is the lesion?"

_SALT = 3000  # keeps these samples apart from those of the other phantoms


@dataclass(frozen=True)
class WindowPhantoms(Items):
    """A random-access source of phantoms of CT. Item i depends only on the arguments and i.

    The demonstration chooses a window, then names the quadrant of the lesion, whether or not the window shows it.

    Attributes:
      side: Side of the pictures, in pixels.
      right_window: Probability that a demonstration chooses the organ's own window. The others share the rest. With 0.25, no
        demonstration says which window is the right one.

    Raises:
      ValueError: If an argument is out of range.
    """

    split: Split
    _: KW_ONLY
    seed: int
    length: int
    side: int = 84
    right_window: float = 0.25

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split: got {self.split!r}, expected one of {', '.join(get_args(Split))}")
        if self.seed < 0 or self.length < 0 or self.side < 64:
            raise ValueError(f"got seed, length, side {self.seed}, {self.length}, {self.side}; expected at least 0, 0, 64")
        if not 0 <= self.right_window <= 1:
            raise ValueError(f"right_window: got {self.right_window}, expected a probability")

    def _item(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, _SALT + get_args(Split).index(self.split), index])
        organ, quadrant = list(ORGANS)[rng.integers(len(ORGANS))], int(rng.integers(len(QUADRANTS)))
        middle, reach = self.side / 2, self.side / 2 - FRAME - 2 * RADIUS - 2
        # The offset from the middle is at least the radius, so that a lesion lies in its quadrant alone.
        x, y = (
            middle + sign * (RADIUS + 1 + float(rng.random()) * reach)
            for sign in (2 * (quadrant % 2) - 1, 2 * (quadrant // 2) - 1)
        )
        values = self.values(rng, organ, x, y)
        others = [window for window in CT_WINDOWS if window != organ]
        window = organ if rng.random() < self.right_window else others[rng.integers(len(others))]
        answer = LETTERS[quadrant]
        return Sample(
            sample_id=f"window-{self.split}-{self.seed}-{index}",
            question=QUESTION,
            images=(Image.fromarray(values),),
            answer=answer,
            options=tuple(zip(LETTERS, QUADRANTS, strict=True)),
            boxes=(Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS, "original"),),
            metadata={"organ": organ},
            demonstration=Demonstration(
                (Look("", "ct_window", arguments={"preset": window}),), Answer(QUADRANTS[quadrant], answer)
            ),
        )

    def values(self, rng: np.random.Generator, organ: str, x: float, y: float, contrast: float = CONTRAST) -> np.ndarray:
        """Draws a phantom with a lesion at (x, y), in Hounsfield units, (side, side) fp32."""
        values = np.full((self.side, self.side), AIR, np.float32)
        inside = slice(FRAME, self.side - FRAME)
        values[inside, inside] = ORGANS[organ] + rng.uniform(-NOISE, NOISE, values[inside, inside].shape)
        down, across = np.mgrid[: self.side, : self.side] + 0.5
        values[np.hypot(across - x, down - y) <= RADIUS] += contrast
        marker = np.s_[1 : FRAME - 1, FRAME : self.side // 2]
        values[marker if organ == "lung" else marker[::-1]] = METAL
        return values


def source(split: Split, *, seed: int = 0, length: int = 1 << 20, side: int = 84, right_window: float = 0.25) -> WindowPhantoms:
    """Opens phantoms of CT for recipes. `WindowPhantoms` describes the options."""
    return WindowPhantoms(split, seed=seed, length=length, side=side, right_window=right_window)


def own_window(trajectory: Trajectory) -> float:
    """Returns whether an episode looked through the window of its organ."""
    calls = (turn.call for turn in trajectory.turns if turn.call is not None and turn.error is None)
    return float(any(call.arguments.get("preset") == trajectory.metadata["organ"] for call in calls))
