"""Phantoms that have to be looked at twice: one lesion, seen at once, read only when enlarged.

The model's first view is the 448 px picture shrunk to 84 px. The lesion, a Gaussian bump of about 20 px,
survives that as a faint spot. What it is asked for is the texture under the bump, and every texture has a
period of 5.0 to 5.6 px: the 448 -> 84 antialias filter has a (third order) zero at 448 / 84 = 5.33 px, so
flat, striped and checkered lesions become the same spot. `phantom_probe` tries to tell them apart in the
first view, knowing where they are, and must fail.

Everything here is numpy and PIL and a pure function of (seed, split, task, index).
"""

import argparse
import os
import tempfile
import threading
import zipfile
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from vitar_jax.episodes.boxes import Box
from vitar_jax.episodes.sample import Demonstration, Sample
from vitar_jax.processing.files import open_image

Split = Literal["train", "test"]
Task = Literal["look", "where", "which", "warmup"]

SIZE = 448
FRAME_PX = 14  # dark border: tells every patch of the first view which edge of the picture it touches
MARGIN = 58.0  # least distance of a lesion's centre from the edge
GOLD_PX = 56.0
BACKGROUNDS = {"train": 192, "test": 48}
ERASED_PERIOD = (5.0, 5.6)

KINDS = ("flat", "rows", "columns", "checks")
LETTERS = ("A", "B", "C", "D")
ROW_WORDS = ("upper", "middle", "lower")
COLUMN_WORDS = ("left", "centre", "right")
SIZE_WORDS = ("close", "medium", "wide")

LOOK_QUESTION = "Which texture?"
WHERE_QUESTION = "Where is the spot?"
WHICH_QUESTION = "Which texture and where?"

CACHE = Path.home() / ".cache" / "vitar_jax" / "phantom"  # where `source` keeps backgrounds
_BACKGROUND_VERSION = 2  # part of the cache's file name: raise it whenever `background` changes
_LESION_RADIUS = 30  # pixels drawn on each side of the centre; 4 sigma of the widest envelope


# --- lesions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesion:
    """A bump `amplitude * G(x, y) * (1 + texture)`: G is Gaussian, the texture a cosine of mean zero.

    Only `kind` says which texture. All other fields follow one law for all kinds, so that nothing else
    tells kinds apart; the total mass is amplitude * 2 pi sigma^2 for each of them, because G holds next to
    nothing at the texture's frequency.

    Attributes:
        x, y: centre, in pixels of the original (pixel 0 spans [0, 1]).
        amplitude: of the bump, where the picture spans [0, 1].
        sigma, period: pixels of the original.
        phase: of the cosine along (y, x), radians.
    """

    kind: str
    x: float
    y: float
    amplitude: float
    sigma: float
    period: float
    phase: tuple[float, float]


def draw_lesion(rng: np.random.Generator, period: tuple[float, float] = ERASED_PERIOD) -> Lesion:
    """A random lesion, uniform over kinds and over places at least `MARGIN` from the edge."""
    kind = KINDS[rng.integers(len(KINDS))]
    unit = rng.random(7)
    return Lesion(
        kind=kind,
        x=MARGIN + float(unit[0]) * (SIZE - 2 * MARGIN),
        y=MARGIN + float(unit[1]) * (SIZE - 2 * MARGIN),
        amplitude=0.26 + 0.06 * float(unit[2]),
        sigma=6.0 + 1.5 * float(unit[3]),
        period=period[0] + float(unit[4]) * (period[1] - period[0]),
        phase=(2 * np.pi * float(unit[5]), 2 * np.pi * float(unit[6])),
    )


def add_lesion(picture: np.ndarray, lesion: Lesion) -> None:
    """Draws the lesion into `picture` (SIZE, SIZE) uint8, in place."""
    left, top = int(lesion.x) - _LESION_RADIUS, int(lesion.y) - _LESION_RADIUS
    steps = np.arange(2 * _LESION_RADIUS + 1, dtype=np.float32)
    y, x = steps + (top + 0.5 - lesion.y), steps + (left + 0.5 - lesion.x)
    envelope_y = np.exp(-0.5 * (y / lesion.sigma) ** 2)
    envelope_x = np.exp(-0.5 * (x / lesion.sigma) ** 2)
    bump = np.outer(255 * lesion.amplitude * envelope_y, envelope_x)
    if lesion.kind != "flat":
        # Bump and texture are separable: rows vary along y, columns along x, checks along both.
        wave_y = np.cos(2 * np.pi / lesion.period * y + lesion.phase[0])
        wave_x = np.cos(2 * np.pi / lesion.period * x + lesion.phase[1])
        along_y = envelope_y * wave_y if lesion.kind in ("rows", "checks") else envelope_y
        along_x = envelope_x * wave_x if lesion.kind in ("columns", "checks") else envelope_x
        bump += np.outer(255 * lesion.amplitude * along_y, along_x)
    patch = picture[top : top + len(steps), left : left + len(steps)]
    patch[...] = np.clip(patch + bump + 0.5, 0, 255)


# --- backgrounds ----------------------------------------------------------------------------------


def background(rng: np.random.Generator) -> np.ndarray:
    """One organ-like background, (SIZE, SIZE) uint8.

    Low-frequency noise, 3 to 6 soft ellipses and white noise inside a dark frame. Kept flat on purpose
    (interior standard deviation about .04): what contrast there is belongs to the frame and the lesion.
    Nowhere bright enough for a lesion to saturate, which would let the texture leak into the mean.
    """
    picture = np.full((SIZE, SIZE), 0.27, np.float32)
    for cells, amplitude in ((4, 0.05), (8, 0.03), (16, 0.015)):
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        picture += 0.35 * amplitude * np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    for _ in range(rng.integers(3, 7)):
        x, y = rng.uniform(0.15 * SIZE, 0.85 * SIZE, 2)
        radius_x, radius_y = rng.uniform(40, 140, 2)
        angle = rng.uniform(0, np.pi)
        amplitude = rng.uniform(0.015, 0.045) * rng.choice((-1.0, 1.0))
        cos, sin = np.cos(angle), np.sin(angle)
        along = ((grid - x) * cos)[None, :] + ((grid - y) * sin)[:, None]
        across = ((grid - y) * cos)[:, None] - ((grid - x) * sin)[None, :]
        radius = np.hypot(along / radius_x, across / radius_y)
        picture += amplitude / (1 + np.exp(np.clip((radius - 1) / 0.08, -30, 30)))
    picture += 0.03 * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    np.clip(picture, 0.12, 0.36, out=picture)  # with a lesion of amplitude .32 on it: 1.0
    inside = slice(FRAME_PX, SIZE - FRAME_PX)
    framed = 0.05 + 0.01 * rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    framed[inside, inside] = picture[inside, inside]
    return np.clip(255 * framed + 0.5, 0, 255).astype(np.uint8)


_banks: dict[tuple[str, str, int], np.ndarray] = {}
_banks_lock = threading.Lock()


def load_backgrounds(cache_dir: str | os.PathLike[str], split: Split, seed: int) -> np.ndarray:
    """All backgrounds of a split, (N, SIZE, SIZE) uint8, made once and kept in `cache_dir`.

    Train and test draw from generators of their own, so none is shared. Any number of threads and processes
    may ask at the
    same time: a file appears whole or not at all, and one that cannot be read is made again.
    """
    key = (os.path.abspath(cache_dir), split, seed)
    with _banks_lock:
        if key not in _banks:
            path = Path(key[0]) / f"phantom_backgrounds_v{_BACKGROUND_VERSION}_seed{seed}_{split}.npz"
            bank = _read_bank(path, BACKGROUNDS[split])
            if bank is None:
                salt = get_args(Split).index(split)
                bank = np.stack([background(np.random.default_rng([seed, salt, n])) for n in range(BACKGROUNDS[split])])
                _write_bank(path, bank)
            bank.setflags(write=False)
            _banks[key] = bank
        return _banks[key]


def _read_bank(path: Path, count: int) -> np.ndarray | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            bank = archive["backgrounds"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return bank if bank.shape == (count, SIZE, SIZE) and bank.dtype == np.uint8 else None


def _write_bank(path: Path, bank: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, backgrounds=bank)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
        spot = f"spot {region_words(lesion.x, lesion.y)} zoom {SIZE_WORDS[size]}"
        return Sample(
            sample_id=sample_id,
            question=LOOK_QUESTION,
            images=(picture,),
            answer=LETTERS[KINDS.index(lesion.kind)],
            options=tuple(zip(LETTERS, KINDS, strict=True)),
            boxes=(gold_box(lesion.x, lesion.y),),
            metadata={"task": "look", "kind": lesion.kind, "centre": (lesion.x, lesion.y)},
            demonstration=Demonstration(thoughts=(spot, f"shows {lesion.kind}"), tool="zoom", boxes=(box,)),
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


def main() -> None:
    """Writes held-out phantoms as PNG files and prints what they show."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, default=Path("phantoms"), help="directory of the pictures")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    looks = source("test", seed=arguments.seed, length=arguments.count)
    for i in range(len(looks)):
        sample = looks[i]
        path = arguments.output / f"phantom_{i}.png"
        open_image(sample.images[0]).save(path)
        x, y = sample.metadata["centre"]
        print(f"{path}: {sample.metadata['kind']} ({sample.answer}) at {x:.0f}, {y:.0f}")


if __name__ == "__main__":
    main()
