"""Phantom samples: questions about one lesion that is visible in the first view but readable only when enlarged.

The model's first view is the 448 px picture of `data_prep.phantom.pictures` shrunk to 84 px, where the lesion is a faint spot.
The question asks for the lesion's texture, which the first view no longer contains.

This module uses only numpy and PIL. Each sample is a pure function of (seed, split, task, index).
"""

import os
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from data_prep.phantom.items import Items
from data_prep.phantom.pictures import (
    BACKGROUNDS,
    ERASED_PERIOD,
    KINDS,
    SIZE,
    Lesion,
    Split,
    draw_lesion,
    draw_picture,
    load_backgrounds,
)
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample

Task = Literal["look", "where", "which", "warmup"]

GOLD_PX = 56.0
_SHORTCUT_SALT = 99  # of the draws of a question, which differ from those of the picture

LETTERS = ("A", "B", "C", "D")
ROW_WORDS = ("upper", "middle", "lower")
COLUMN_WORDS = ("left", "centre", "right")
SIZE_WORDS = ("close", "medium", "wide")

LOOK_QUESTION = "Which texture?"
WHERE_QUESTION = "Where is the spot?"
WHICH_QUESTION = "Which texture and where?"
SHORTCUT_QUESTION = "Which texture is it, {}?"

CACHE = Path.home() / ".cache" / "vitar_jax" / "phantom"  # default cache of backgrounds


# --- locations, in words and pixels ----------------------------------------------------------------


def region_words(x: float, y: float, size: float = SIZE) -> str:
    """Returns the cell that contains (x, y) in a 3 x 3 grid over a square of side `size`, such as "upper left"."""
    row, column = (min(2, max(0, int(3 * value / size))) for value in (y, x))
    return f"{ROW_WORDS[row]} {COLUMN_WORDS[column]}"


def gold_box(x: float, y: float) -> Box:
    """Returns the square of side `GOLD_PX` centred on (x, y), in frame "original"."""
    half = GOLD_PX / 2
    return Box(x - half, y - half, x + half, y + half, "original")


def square_inside(x: float, y: float, side: float, step: float = 1.0) -> Box:
    """Returns a square of about `side` px near (x, y), in frame "original", with corners at multiples of `step` px.

    A square that would exceed the picture is moved, not cut, so crops stay square and keep the size that their size word names.
    """
    cells, most = max(1, round(side / step)), round(SIZE / step)
    left, top = (min(max(round(v / step - cells / 2), 0), most - cells) for v in (x, y))
    return Box(left * step, top * step, (left + cells) * step, (top + cells) * step, "original")


def place_answer(x: float, y: float, box: Box, view: int) -> str:
    """Returns where (x, y) of the original lies when `box` fills the view, such as "upper left 23, 45" (view pixels)."""
    at = ((x - box.x1) / box.width * view, (y - box.y1) / box.height * view)
    column, row = (min(view - 1, max(0, int(value))) for value in at)
    return f"{region_words(*at, size=view)} {column}, {row}"


# --- the data source ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phantoms(Items):
    """A random-access source of phantom samples. Item i depends only on the arguments and i, in any thread or process.

    Tasks:
      look: The 448 px picture and "Which texture?", with four lettered options. The demonstration shows an expert that zooms.
      where: "Where is the spot?", mostly on the whole picture. The answer names the region, then x, y in view pixels:
        "upper left 23, 45".
      which: A crop that contains the lesion. Half of the crops are tight, because an untrained model learns nothing from wide
        crops alone. An answer is "rows B upper left 23, 45". Texture and letter come first, directly after the question, like
        the answer in the second turn of an episode. The location after them needs no further image, and gives a crop ten
        supervised tokens instead of two.
      warmup: A mix of the last two. `warmup_where` is the share of "where".

    The last three tasks are answered in plain text, in one turn. Crops are enlarged to the view, as by `zoom`.

    Attributes:
      split: Splits "train" and "test" share no background.
      length: Number of items.
      cache_dir: Folder that caches backgrounds.
      view: Side of the square, in pixels, to which the model's processor resizes every picture.
      sizes: Sides of the expert's box in pixels of the original picture: close, medium, wide.
      size_probabilities: Probabilities of the three sizes.
      jitter: Largest offset of the expert's box from the lesion along each axis, in pixels of the original picture.
      warmup_where: Share of "where" among warm-up items.
      where_crops: Share of crops (107 to 320 px, with the lesion anywhere) among "where" items.
      tight_crops: Share of crops of 32 to 56 px among "which" items. The others have 53 to 213 px.
      period: Range of the texture's period, in pixels. Values other than the default may reveal the kind in the first view.

    Raises:
      ValueError: If an argument is out of range.
    """

    split: Split
    _: KW_ONLY
    seed: int
    length: int
    task: Task
    # Not in the repr, which grain checkpoints: items do not depend on the location of the cache.
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
            raise ValueError(f"split: got {self.split!r}, expected one of {', '.join(BACKGROUNDS)}")
        if self.task not in get_args(Task):
            raise ValueError(f"task: got {self.task!r}, expected one of {', '.join(get_args(Task))}")
        if self.seed < 0 or self.length < 0 or self.view < 1:
            raise ValueError(f"got seed, length, view {self.seed}, {self.length}, {self.view}; expected at least 0, 0, 1")
        if min(self.size_probabilities) < 0 or abs(sum(self.size_probabilities) - 1) > 1e-6:
            raise ValueError(f"size_probabilities: got {self.size_probabilities}, expected non-negative numbers that sum to 1")
        # Generates backgrounds here instead of inside the first training step.
        load_backgrounds(self.cache_dir, self.split, self.seed)

    def _item(self, index: int) -> Sample:
        salt = (get_args(Split).index(self.split), get_args(Task).index(self.task))
        rng = np.random.default_rng([self.seed, *salt, index])
        lesion = draw_lesion(rng, self.period)
        picture = draw_picture(rng, load_backgrounds(self.cache_dir, self.split, self.seed), [lesion])
        sample_id = f"phantom-{self.task}-{self.split}-{self.seed}-{index}"
        if self.task == "look":
            return self._look(sample_id, rng, picture, lesion)
        if self.task == "where" or (self.task == "warmup" and rng.random() < self.warmup_where):
            return self._where(sample_id, rng, picture, lesion)
        return self._which(sample_id, rng, picture, lesion)

    def _look(self, sample_id: str, rng: np.random.Generator, picture: Image.Image, lesion: Lesion) -> Sample:
        size = int(np.searchsorted(np.cumsum(self.size_probabilities)[:-1], rng.random(), side="right"))
        x, y = _offset(rng, lesion, self.jitter)
        # Corners lie on whole view pixels, so the coordinates that the expert writes are exact, and a size always spans the
        # same number of pixels.
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
    """Draws a point up to `reach` px from the lesion's centre along each axis."""
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
    # The lesion's box in pixels of the crop. Like the lesion's faint rim, it may exceed a tight crop.
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


@dataclass(frozen=True)
class Shortcuts(Items):
    """The phantoms of the task "look" with a shortcut: the question names a texture, "Which texture is it, rows?".

    The named texture is the lesion's in a share of the training samples. In the others, and in all held-out samples, it is
    another one. A policy that repeats it is right in that share of training, and never on held-out samples.

    Attributes:
      looks: Phantoms of the task "look".
      given_away: Share of training samples whose question names the lesion's texture. With 1/4, the question says nothing.

    Raises:
      ValueError: If the share is not from 0 to 1, or the phantoms are of another task.
    """

    looks: Phantoms
    given_away: float = 0.8

    def __post_init__(self) -> None:
        if self.looks.task != "look" or not 0 <= self.given_away <= 1:
            raise ValueError(f"got {self.looks.task!r}, given_away={self.given_away}; expected 'look' and a share from 0 to 1")

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.looks.length

    def _item(self, index: int) -> Sample:
        sample, looks = self.looks[index], self.looks
        rng = np.random.default_rng([looks.seed, get_args(Split).index(looks.split), _SHORTCUT_SALT, index])
        given_away = looks.split == "train" and rng.random() < self.given_away
        kind = sample.metadata["kind"]
        named = kind if given_away else str(rng.choice([other for other in KINDS if other != kind]))
        return replace(
            sample,
            sample_id=sample.sample_id.replace("look", "shortcut", 1),
            question=SHORTCUT_QUESTION.format(named),
            metadata={**sample.metadata, "task": "shortcut", "named": named, "given_away": int(given_away)},
        )


def source(
    split: Split, *, task: Task | Literal["shortcut"] = "look", seed: int = 0, length: int = 1 << 20, **options: Any
) -> Phantoms | Shortcuts:
    """Opens phantoms for recipes. `cache_dir` is a folder in the user's cache by default; `Phantoms` describes the options.

    The task "shortcut" also has the option `given_away` of `Shortcuts`.
    """
    options.setdefault("cache_dir", CACHE)
    if task == "shortcut":
        shares = {name: options.pop(name) for name in ("given_away",) if name in options}
        return Shortcuts(Phantoms(split, seed=seed, length=length, task="look", **options), **shares)
    return Phantoms(split, seed=seed, length=length, task=task, **options)
