"""Phantom samples with several spots that are alike in the first view, so that one look is not enough.

Tasks:
  search: One spot has a texture, all others are flat. The answer is that texture, of three.
  odd: All spots but one have the same texture, of four (flat is one). The answer is the texture of the odd one, which no spot
    shows by itself: looks have to be compared.

How often an answer is right follows from the number of looks alone (`share_right`):

    spots looked at         0      1      2      3
    search, 2 spots       33 %   67 %  100 %
    search, 3 spots       33 %   56 %   78 %  100 %
    odd, 3 spots          25 %   33 %   44 %  100 %

A look here is at one spot. A box wide enough for two spots, which no demonstration has, shows the textures of both, if less
clearly: the probe of `data_prep.phantom.probe` reads 86 % of kinds at 220 px and 66 % at 330 px.

Each sample is a pure function of (seed, split, task, index).
"""

import os
from collections import Counter, defaultdict
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import permutations
from typing import Any, Literal, get_args

import numpy as np

from data_prep.phantom.items import Items
from data_prep.phantom.pictures import (
    BACKGROUNDS,
    ERASED_PERIOD,
    KINDS,
    MARGIN,
    SIZE,
    Split,
    draw_lesion,
    draw_picture,
    load_backgrounds,
)
from data_prep.phantom.samples import (
    CACHE,
    LETTERS,
    LOOK_QUESTION,
    SIZE_WORDS,
    gold_box,
    region_words,
    square_inside,
)
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample

Task = Literal["search", "odd"]

ODD_QUESTION = "Which texture is the odd one?"
MOST_SPOTS = 4
LETTER: dict[str, str] = dict(zip(KINDS, LETTERS, strict=True))  # a texture has the same letter in all tasks

_SALT = 1000  # keeps these samples apart from those of `data_prep.phantom.samples`, which use the salts 0 to 3


@dataclass(frozen=True)
class World:
    """One assignment of kinds to spots. All worlds of a task are equally likely.

    Attributes:
      kinds: The kind of each spot.
      spot: The spot whose kind is the answer.
    """

    kinds: tuple[str, ...]
    spot: int

    @property
    def answer(self) -> str:
        return self.kinds[self.spot]


def worlds(task: Task, spots: int) -> tuple[World, ...]:
    """Returns all worlds of a task: each pair of a common and another kind that it allows, with the other kind at each spot."""
    pairs = [("flat", kind) for kind in KINDS if kind != "flat"] if task == "search" else permutations(KINDS, 2)
    every = range(spots)
    return tuple(World(tuple(kind if n == spot else common for n in every), spot) for common, kind in pairs for spot in every)


def share_right(task: Task, spots: int, looks: int) -> float:
    """Returns how often the best answer is right that knows the kinds of `looks` of the spots.

    For "search" it is n / K + (1 - n / K) / 3 for n looks at K spots.
    """
    answers: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for world in worlds(task, spots):  # a task is alike in all spots, so the first ones stand for any
        answers[world.kinds[:looks]][world.answer] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(worlds(task, spots))


@dataclass(frozen=True)
class Searches(Items):
    """A random-access source of phantoms with several spots. Item i depends only on the arguments and i.

    A sample's `boxes` hold the spot whose texture is the answer, `metadata["other_boxes"]` the other spots. The demonstration
    looks at spots in random order, until they leave one answer or it has made `looks` looks. Then it gives an answer that is
    most likely after what it saw, drawn at random where several are, so it is right as often as `share_right` says.

    Attributes:
      split: Splits "train" and "test" share no background.
      length: Number of items.
      task: "search" or "odd".
      cache_dir: Folder that caches backgrounds.
      spots: Number of spots, 2 to `MOST_SPOTS`; at least 3 for "odd". If None, 2 for "search" and 3 for "odd".
      looks: Maximum number of looks of the demonstration.
      tool: Tool of the demonstration.
      view: Side of the square, in pixels, to which the model's processor resizes every picture.
      apart: Smallest distance of two spots along the axis on which they are farther apart, in pixels of the original picture.
        A square that shows two spots is larger.
      sizes: Sides of the demonstration's box in pixels of the original picture: close, medium.
      close: Share of close boxes.
      jitter: Largest offset of the demonstration's box from the spot along each axis, in pixels of the original picture.
      period: Range of the texture's period, in pixels. Values other than the default may reveal kinds in the first view.

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
    spots: int | None = None
    looks: int = 1
    tool: str = "Gaze"
    view: int = 84
    apart: float = 200.0
    sizes: tuple[float, float] = (SIZE * 10 / 84, SIZE * 20 / 84)
    close: float = 0.5
    jitter: float = 13.3
    period: tuple[float, float] = ERASED_PERIOD

    def __post_init__(self) -> None:
        for name, value, allowed in (("split", self.split, BACKGROUNDS), ("task", self.task, get_args(Task))):
            if value not in allowed:
                raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(allowed)}")
        if min(self.seed, self.length, self.looks) < 0 or self.view < 1:
            found = f"{self.seed}, {self.length}, {self.looks}, {self.view}"
            raise ValueError(f"got seed, length, looks, view {found}; expected at least 0, 0, 0, 1")
        least = 2 if self.task == "search" else 3
        if not least <= self.count <= MOST_SPOTS:
            raise ValueError(f"spots: got {self.spots}, expected {least} to {MOST_SPOTS} for {self.task!r}")
        if not 0 <= self.apart <= 0.65 * (SIZE - 2 * MARGIN):
            raise ValueError(f"apart: got {self.apart}, expected 0 to {0.65 * (SIZE - 2 * MARGIN):.0f} px")
        if not 0 <= self.close <= 1:
            raise ValueError(f"close: got {self.close}, expected a share from 0 to 1")
        # Generates backgrounds here instead of inside the first training step.
        load_backgrounds(self.cache_dir, self.split, self.seed)

    @property
    def count(self) -> int:
        """Number of spots of each sample."""
        return self.spots if self.spots is not None else 2 if self.task == "search" else 3

    def _item(self, index: int) -> Sample:
        salt = (get_args(Split).index(self.split), _SALT + get_args(Task).index(self.task))
        rng = np.random.default_rng([self.seed, *salt, index])
        possible = worlds(self.task, self.count)
        world = possible[rng.integers(len(possible))]
        lesions = [
            replace(draw_lesion(rng, self.period), kind=kind, x=x, y=y)
            for kind, (x, y) in zip(world.kinds, self._centres(rng), strict=True)
        ]
        picture = draw_picture(rng, load_backgrounds(self.cache_dir, self.split, self.seed), lesions)
        centres = tuple((lesion.x, lesion.y) for lesion in lesions)
        boxes = [gold_box(*centre) for centre in centres]
        textured = self.task == "search"
        return Sample(
            sample_id=f"phantom-{self.task}-{self.split}-{self.seed}-{index}",
            question=LOOK_QUESTION if textured else ODD_QUESTION,
            images=(picture,),
            answer=LETTER[world.answer],
            options=tuple((letter, kind) for kind, letter in LETTER.items() if not (textured and kind == "flat")),
            boxes=(boxes[world.spot],),
            metadata={
                "task": self.task,
                "kind": world.answer,
                "kinds": world.kinds,
                "centres": centres,
                "spot": world.spot,
                "other_boxes": [list(box.xyxy) for n, box in enumerate(boxes) if n != world.spot],
            },
            demonstration=self._demonstration(rng, world, centres),
        )

    def _centres(self, rng: np.random.Generator) -> np.ndarray:
        """Draws the spots' centres (spots, 2), uniformly over all that are far enough apart."""
        while True:
            drawn = rng.uniform(MARGIN, SIZE - MARGIN, (256, self.count, 2))
            distances = np.abs(drawn[:, :, None] - drawn[:, None]).max(-1)[:, *np.triu_indices(self.count, 1)]
            far = np.flatnonzero((distances >= self.apart).all(-1))
            if len(far):
                return drawn[far[0]]

    def _demonstration(
        self, rng: np.random.Generator, world: World, centres: tuple[tuple[float, float], ...]
    ) -> Demonstration:
        looks: list[Look] = []
        possible = list(worlds(self.task, self.count))
        thought = ""
        for spot in rng.permutation(self.count)[: self.looks]:
            x, y = centres[spot]
            size = int(rng.random() >= self.close)
            dx, dy = rng.uniform(-self.jitter, self.jitter, 2)
            box = square_inside(x + dx, y + dy, self.sizes[size], step=SIZE / self.view)
            place = f"spot {region_words(x, y)} zoom {SIZE_WORDS[size]}"
            looks.append(Look(f"{thought} {place}".lstrip(), self.tool, (box,)))
            thought = f"shows {world.kinds[spot]}"
            possible = [other for other in possible if other.kinds[spot] == world.kinds[spot]]
            if len({other.answer for other in possible}) == 1:
                break
        counts = Counter(other.answer for other in possible)
        best = [kind for kind in KINDS if counts[kind] == max(counts.values())]
        return Demonstration(tuple(looks), Answer(thought, LETTER[best[rng.integers(len(best))]]))


def source(split: Split, *, task: Task = "search", seed: int = 0, length: int = 1 << 20, **options: Any) -> Searches:
    """Opens searches for recipes. `cache_dir` is a folder in the user's cache by default; `Searches` describes the options."""
    options.setdefault("cache_dir", CACHE)
    return Searches(split, seed=seed, length=length, task=task, **options)
