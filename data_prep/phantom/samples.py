"""Phantoms that have to be looked at twice: one lesion, seen at once, read only when enlarged.

The model's first view is the 448 px picture (`phantom_pictures`) shrunk to 84 px, where the lesion is a faint spot. What it
is asked for is the texture under it, which is not there any more.

Everything here is numpy and PIL and a pure function of (seed, split, task, index).
"""

import os
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from data_prep.phantom.pictures import (
    BACKGROUNDS,
    ERASED_PERIOD,
    KINDS,
    SIZE,
    Lesion,
    Split,
    add_lesion,
    draw_lesion,
    load_backgrounds,
)
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample

Task = Literal["look", "where", "which", "warmup"]

GOLD_PX = 56.0

LETTERS = ("A", "B", "C", "D")
ROW_WORDS = ("upper", "middle", "lower")
COLUMN_WORDS = ("left", "centre", "right")
SIZE_WORDS = ("close", "medium", "wide")

LOOK_QUESTION = "Which texture?"
WHERE_QUESTION = "Where is the spot?"
WHICH_QUESTION = "Which texture and where?"

CACHE = Path.home() / ".cache" / "vitar_jax" / "phantom"  # where `source` keeps backgrounds


# --- places, in words and pixels ------------------------------------------------------------------


def region_words(x: float, y: float, size: float = SIZE) -> str:
    """The cell of a 3 x 3 grid over a square of this size that holds (x, y), say "upper left"."""
    row, column = (min(2, max(0, int(3 * value / size))) for value in (y, x))
    return f"{ROW_WORDS[row]} {COLUMN_WORDS[column]}"


def gold_box(x: float, y: float) -> Box:
    """The box of `GOLD_PX` centred on (x, y), frame "original"."""
    half = GOLD_PX / 2
    return Box(x - half, y - half, x + half, y + half, "original")


def square_inside(x: float, y: float, side: float, step: float = 1.0) -> Box:
    """A square of about `side` px near (x, y), frame "original", its corners at multiples of `step` px.

    A square that would leave the picture is moved, not cut: crops stay square and a size word stays true.
    """
    cells, most = max(1, round(side / step)), round(SIZE / step)
    left, top = (min(max(round(v / step - cells / 2), 0), most - cells) for v in (x, y))
    return Box(left * step, top * step, (left + cells) * step, (top + cells) * step, "original")


def place_answer(x: float, y: float, box: Box, view: int) -> str:
    """Where (x, y) of the original is once `box` fills the view: "upper left 23, 45" (view pixels)."""
    at = ((x - box.x1) / box.width * view, (y - box.y1) / box.height * view)
    column, row = (min(view - 1, max(0, int(value))) for value in at)
    return f"{region_words(*at, size=view)} {column}, {row}"


# --- the data source ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phantoms:
    """A random-access source: item i depends on the arguments and i alone, in any thread or process.

    Tasks:
        look: the 448 px picture and "Which texture?" with four lettered options; `demonstration` is an
            expert that zooms.
        where: "Where is the spot?", mostly on the whole picture. Answer "upper left 23, 45": region, then
            x, y in view pixels.
        which: a crop that holds the lesion, half of them tight: the first reader learns nothing from wide
            ones alone. Answer "rows B upper left 23, 45". What is asked of turn two comes first, directly
            after the question as there; the place behind it costs no further image and gives a crop ten
            supervised tokens instead of two.
        warmup: a mix of the last two, `warmup_where` of them "where".

    The last three are answered in plain text, in one turn. Crops are enlarged to the view, as by `zoom`.

    Attributes:
        split: backgrounds of "train" and "test" are never shared.
        length: number of items.
        cache_dir: where backgrounds are kept.
        view: side in pixels of the square that the model's processor makes of any picture.
        sizes: sides of the expert's box in pixels of the original: close, medium, wide.
        size_probabilities: of the three.
        jitter: largest offset, along each axis, of the expert's box from the lesion, in pixels of the
            original.
        warmup_where: share of "where" among warm-up items.
        where_crops: share of crops (107 to 320 px, the lesion anywhere) among "where" items.
        tight_crops: share of 32 to 56 px crops among "which" items; the others have 53 to 213 px.
        period: of the texture, in pixels. Anything but the default lets the kind be read in the first view.

    Raises:
        ValueError: an argument is out of range.
    """

    split: Split
    _: KW_ONLY
    seed: int
    length: int
    task: Task
    # Items do not depend on where backgrounds are kept, and grain checkpoints a source's repr.
    cache_dir: str | os.PathLike[str] = field(repr=False)
    view: int = 84
    sizes: tuple[float, float, float] = (SIZE * 10 / 84, SIZE * 20 / 84, SIZE * 40 / 84)
    size_probabilities: tuple[float, float, float] = (0.3, 0.4, 0.3)
    jitter: float = 13.3
    warmup_where: float = 0.5
    where_crops: float = 0.25
    tight_crops: float = 0.5
    period: tuple[float, float] = ERASED_PERIOD

    def __post_init__(self) -> None:
        if self.split not in BACKGROUNDS:
            raise ValueError(f"split {self.split!r} is not one of {', '.join(BACKGROUNDS)}")
        if self.task not in get_args(Task):
            raise ValueError(f"task {self.task!r} is not one of {', '.join(get_args(Task))}")
        if self.seed < 0 or self.length < 0 or self.view < 1:
            raise ValueError(f"need seed, length >= 0 and view >= 1: {self.seed}, {self.length}, {self.view}")
        if min(self.size_probabilities) < 0 or abs(sum(self.size_probabilities) - 1) > 1e-6:
            raise ValueError(f"size_probabilities {self.size_probabilities} do not sum to 1")
        # Now, rather than inside the first training step.
        load_backgrounds(self.cache_dir, self.split, self.seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of a source of {self.length}")
        salt = (get_args(Split).index(self.split), get_args(Task).index(self.task))
        rng = np.random.default_rng([self.seed, *salt, int(index)])
        lesion = draw_lesion(rng, self.period)
        picture = self._picture(rng, lesion)
        sample_id = f"phantom-{self.task}-{self.split}-{self.seed}-{index}"
        if self.task == "look":
            return self._look(sample_id, rng, picture, lesion)
        if self.task == "where" or (self.task == "warmup" and rng.random() < self.warmup_where):
            return self._where(sample_id, rng, picture, lesion)
        return self._which(sample_id, rng, picture, lesion)

    def _picture(self, rng: np.random.Generator, lesion: Lesion) -> Image.Image:
        bank = load_backgrounds(self.cache_dir, self.split, self.seed)
        chosen, symmetry = int(rng.integers(len(bank))), int(rng.integers(8))
        turned = np.rot90(bank[chosen], symmetry % 4)
        picture = np.array(turned[:, ::-1] if symmetry >= 4 else turned, order="C")
        add_lesion(picture, lesion)
        return Image.fromarray(picture)

    def _look(self, sample_id: str, rng: np.random.Generator, picture: Image.Image, lesion: Lesion) -> Sample:
        size = int(np.searchsorted(np.cumsum(self.size_probabilities)[:-1], rng.random(), side="right"))
        x, y = _offset(rng, lesion, self.jitter)
        # Corners on whole view pixels: what the expert writes is exact, and a size is always the same
        # number of pixels.
        box = square_inside(x, y, self.sizes[size], step=SIZE / self.view)
        answer = LETTERS[KINDS.index(lesion.kind)]
        spot = f"spot {region_words(lesion.x, lesion.y)} zoom {SIZE_WORDS[size]}"
        return Sample(
            sample_id=sample_id,
            question=LOOK_QUESTION,
            images=(picture,),
            answer=answer,
            options=tuple(zip(LETTERS, KINDS, strict=True)),
            boxes=(gold_box(lesion.x, lesion.y),),
            metadata={"task": "look", "kind": lesion.kind, "centre": (lesion.x, lesion.y)},
            demonstration=Demonstration((Look(spot, "zoom", (box,)),), Answer(f"shows {lesion.kind}", answer)),
        )

    def _where(self, sample_id: str, rng: np.random.Generator, picture: Image.Image, lesion: Lesion) -> Sample:
        box = Box(0, 0, SIZE, SIZE, "original")
        if rng.random() < self.where_crops:
            side = rng.uniform(107, 320)
            box = square_inside(*_offset(rng, lesion, side / 2 - 12), side)
        answer = place_answer(lesion.x, lesion.y, box, self.view)
        return _warm_up_sample(sample_id, "where", WHERE_QUESTION, answer, picture, lesion, box, self.view)

    def _which(self, sample_id: str, rng: np.random.Generator, picture: Image.Image, lesion: Lesion) -> Sample:
        side = rng.uniform(32, 56) if rng.random() < self.tight_crops else rng.uniform(53, 213)
        box = square_inside(*_offset(rng, lesion, min(side / 2 - 12, 40)), side)
        letter = LETTERS[KINDS.index(lesion.kind)]
        answer = f"{lesion.kind} {letter} {place_answer(lesion.x, lesion.y, box, self.view)}"
        return _warm_up_sample(sample_id, "which", WHICH_QUESTION, answer, picture, lesion, box, self.view)


def _offset(rng: np.random.Generator, lesion: Lesion, reach: float) -> tuple[float, float]:
    """A point up to `reach` px from the lesion's centre along each axis."""
    dx, dy = rng.uniform(-reach, reach, 2)
    return lesion.x + float(dx), lesion.y + float(dy)


def _warm_up_sample(
    sample_id: str,
    task: str,
    question: str,
    answer: str,
    picture: Image.Image,
    lesion: Lesion,
    box: Box,
    view: int,
) -> Sample:
    left, top, right, bottom = (int(value) for value in box.xyxy)
    scale = view / (right - left)
    # The lesion's box in the crop's own pixels; it may reach beyond a tight crop, like the lesion's faint rim.
    x1, y1, x2, y2 = gold_box(lesion.x - left, lesion.y - top).xyxy
    gold = Box(scale * x1, scale * y1, scale * x2, scale * y2, "original")
    return Sample(
        sample_id=sample_id,
        question=question,
        images=(picture.resize((view, view), Image.Resampling.BICUBIC, box=(left, top, right, bottom)),),
        answer=answer,
        boxes=(gold,),
        metadata={
            "task": task,
            "kind": lesion.kind,
            "centre": (lesion.x, lesion.y),
            "crop": (left, top, right, bottom),
        },
    )


def source(split: Split, *, task: Task = "look", seed: int = 0, length: int = 1 << 20, **options: Any) -> Phantoms:
    """The data set as recipes name it; backgrounds are kept under the user's cache folder unless told otherwise."""
    options.setdefault("cache_dir", CACHE)
    return Phantoms(split, seed=seed, length=length, task=task, **options)
