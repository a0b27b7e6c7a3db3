"""Phantoms of several findings, for traces whose objects carry masks: which of two is higher, further left, or larger?

Each picture has four findings of different kinds, apart from each other. All kinds have areas from the same range, so that a
question alone gives no hint of the answer. A demonstration names the two findings in question, with their masks and what is
compared, and then the answer. This module uses only numpy and PIL. Each sample is a pure function of (seed, split, index).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from data_prep.phantom.items import Items
from data_prep.phantom.pictures import Split
from vitar_jax.episodes.object_tags import without_tags
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample, SegmentedObject

# Areas of the kinds, where the circle around a finding has the radius 1.
KINDS = {"disc": np.pi, "square": 2.0, "triangle": 0.75 * 3**0.5, "ring": 0.75 * np.pi}

# In pixels of a picture of 96 x 96.
AREAS = (110.0, 420.0)  # unless a recipe says otherwise
GAP = 2.0  # smallest distance between the circles around two findings
FURTHER = 9.0  # smallest difference in height, or sideways, that a question asks about
LARGER = 1.4  # smallest ratio of areas that a question asks about

# Lowest and highest brightness of the first kind, and how much brighter each kind is than the one before.
ALIKE = (0.3, 0.55, 0.0)
GRADED = (0.2, 0.4, 0.1)

# In words of a demonstration.
PLACES = 20  # rows, and columns, of a picture
GROWTH = 1.2  # ratio of areas between one size and the next

@dataclass(frozen=True)
class Finding:
    """A finding: its kind, centre and radius of the circle around it in pixels, and by how much it is brighter."""

    kind: str
    x: float
    y: float
    radius: float
    brightness: float

    def depth(self, side: int) -> np.ndarray:
        """Returns how deep the centre of each pixel lies within the outline, in pixels [side, side]; negative outside."""
        y, x = np.mgrid[:side, :side] + 0.5 - np.array([self.y, self.x])[:, None, None]
        return _DEPTH[self.kind](x, y, self.radius)


_DEPTH: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "disc": lambda x, y, r: r - np.hypot(x, y),
    "square": lambda x, y, r: r / 2**0.5 - np.maximum(np.abs(x), np.abs(y)),
    "triangle": lambda x, y, r: r / 2 - np.maximum(y, np.maximum(3**0.5 * x - y, -(3**0.5) * x - y) / 2),
    "ring": lambda x, y, r: 0.25 * r - np.abs(np.hypot(x, y) - 0.75 * r),
}

# By relation: the quantity of a mask of which the answer has more.
RELATIONS: dict[str, Callable[[np.ndarray], float]] = {
    "higher": lambda mask: -float(np.nonzero(mask)[0].mean()),
    "further left": lambda mask: -float(np.nonzero(mask)[1].mean()),
    "larger": lambda mask: float(mask.sum()),
}

# By relation: what a demonstration says of a finding with that quantity in a picture of this side, where the smallest findings
# have this area.
WORDS: dict[str, Callable[[float, int, float], str]] = {
    "higher": lambda more, side, smallest: f"in row {int(-more / side * PLACES)}",
    "further left": lambda more, side, smallest: f"in column {int(-more / side * PLACES)}",
    "larger": lambda more, side, smallest: f"of size {max(0, round(math.log(more * (96 / side) ** 2 / smallest, GROWTH)))}",
}


@dataclass(frozen=True)
class Findings(Items):
    """A random-access source of pictures with four findings. Item i depends only on the arguments and i.

    Attributes:
      side: Side of the pictures, in pixels.
      areas: Smallest and largest area of a finding, in pixels of a picture of 96 x 96.
      graded: Whether each kind is brighter on average than the one before. Its shape still decides, because neighbours overlap.
      relations: The relations that questions ask about, with equal shares.
      task: "compare" asks which of two findings has more of a relation. "find" asks where one finding is, and its demonstration
        says all that comparisons are made of.
      outline: Whether a demonstration first asks to see the two findings outlined, for the protocol `outline`.

    Raises:
      ValueError: If an argument is out of range.
    """

    split: Split
    _: KW_ONLY
    seed: int
    length: int
    side: int = 96
    areas: tuple[float, float] = AREAS
    graded: bool = False
    relations: Sequence[str] = tuple(RELATIONS)
    task: Literal["compare", "find"] = "compare"
    outline: bool = False

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split: got {self.split!r}, expected one of {', '.join(get_args(Split))}")
        if self.seed < 0 or self.length < 0 or self.side < 48:
            raise ValueError(f"got seed, length, side {self.seed}, {self.length}, {self.side}; expected at least 0, 0, 48")
        smallest, largest = self.areas
        if not (50 <= smallest <= AREAS[1] and smallest <= largest <= 1000):  # four larger ones hardly fit
            raise ValueError(f"areas: got {self.areas}, expected a smallest from 50 to {AREAS[1]:.0f} and a largest to 1000")
        if self.task not in ("compare", "find"):
            raise ValueError(f"task: got {self.task!r}, expected compare or find")
        if not self.relations or set(self.relations) - set(RELATIONS):
            raise ValueError(f"relations: got {self.relations!r}, expected some of {', '.join(RELATIONS)}")

    def _item(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        return self._found(rng, index) if self.task == "find" else self._compared(rng, index)

    def _found(self, rng: np.random.Generator, index: int) -> Sample:
        findings = draw_findings(rng, self.side, self.areas, graded=self.graded)
        depths = [finding.depth(self.side) for finding in findings]
        place = int(rng.integers(len(findings)))
        kind, mask = findings[place].kind, depths[place] >= 0
        row, column, size = (
            WORDS[relation](RELATIONS[relation](mask), self.side, self.areas[0])
            for relation in ("higher", "further left", "larger")
        )
        thought = f"The <ver><obj1> {kind}</ver> {size} {row} and {column.removeprefix('in ')}."
        answer = f"The <vea><obj1> {kind}</vea>."
        return Sample(
            sample_id=f"phantom-finding-{self.split}-{self.seed}-{index}",
            question=f"Where is the {kind}?",
            images=(_picture(rng, findings, depths),),
            answer=without_tags(answer),
            demonstration=Demonstration(self._looks(thought), Answer(thought, answer)),
            objects=(SegmentedObject("obj1", Mask.of(mask, "original"), kind, True, True),),
        )

    def _looks(self, thought: str) -> tuple[Look, ...]:
        return (Look(thought, "outline"),) if self.outline else ()

    def _compared(self, rng: np.random.Generator, index: int) -> Sample:
        relation = self.relations[int(rng.integers(len(self.relations)))]
        while True:
            findings = draw_findings(rng, self.side, self.areas, graded=self.graded)
            depths = [finding.depth(self.side) for finding in findings]
            pair = rng.permutation(len(findings))[:2].tolist()
            more = [RELATIONS[relation](depths[place] >= 0) for place in pair]
            clear = max(more) >= LARGER * min(more) if relation == "larger" else abs(more[0] - more[1]) >= self._pixels(FURTHER)
            if clear:
                break
        compared = [WORDS[relation](much, self.side, self.areas[0]) for much in more]
        shown = [(findings[place].kind, Mask.of(depths[place] >= 0, "original")) for place in pair]
        sample_id = f"phantom-findings-{self.split}-{self.seed}-{index}"
        # A kind stands directly behind its `[SEG]`, whose state thus has to hold it.
        (first, _), (second, _) = shown
        thought = f"The <ver><obj1> {first}</ver> {compared[0]} and the <ver><obj2> {second}</ver> {compared[1]}."
        picture = _picture(rng, findings, depths)
        return _sample(sample_id, relation, shown, int(np.argmax(more)), self._looks(thought), thought, picture)

    def _pixels(self, value: float) -> float:
        return value * self.side / 96


def draw_findings(
    rng: np.random.Generator, side: int, areas: tuple[float, float] = AREAS, *, graded: bool = False
) -> list[Finding]:
    """Draws one finding of each kind, apart from each other and within the picture, of an area between these two."""
    unit = side / 96
    while True:
        radii = np.sqrt(rng.uniform(*areas, len(KINDS)) / [*KINDS.values()]) * unit
        x, y = (radii + unit + rng.random(len(KINDS)) * (side - 2 * (radii + unit)) for _ in range(2))
        distances = np.hypot(x[:, None] - x, y[:, None] - y) - radii[:, None] - radii
        if (distances[~np.eye(len(KINDS), dtype=bool)] >= GAP * unit).all():
            low, high, step = GRADED if graded else ALIKE
            brightness = rng.uniform(low, high, len(KINDS)) + step * np.arange(len(KINDS))
            return [Finding(kind, *map(float, rest)) for kind, *rest in zip(KINDS, x, y, radii, brightness, strict=True)]


def _picture(rng: np.random.Generator, findings: Sequence[Finding], depths: Sequence[np.ndarray]) -> Image.Image:
    side = len(depths[0])
    coarse = Image.fromarray(rng.random((6, 6)).astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    picture = 0.15 + 0.15 * np.asarray(coarse) + 0.02 * rng.standard_normal((side, side))
    for finding, depth in zip(findings, depths, strict=True):
        picture += finding.brightness * np.clip(depth + 0.5, 0, 1)  # a pixel on the outline is half covered
    return Image.fromarray(np.clip(255 * picture + 0.5, 0, 255).astype(np.uint8))


def _sample(
    sample_id: str,
    relation: str,
    shown: Sequence[tuple[str, Mask]],
    chosen: int,
    looks: tuple[Look, ...],
    thought: str,
    picture: Image.Image,
) -> Sample:
    (first, _), (second, _) = shown
    answer = f"The <vea><obj{chosen + 1}> {shown[chosen][0]}</vea>."
    return Sample(
        sample_id=sample_id,
        question=f"Which is {relation}: the {first} or the {second}?",
        images=(picture,),
        answer=without_tags(answer),
        metadata={"relation": relation},
        demonstration=Demonstration(looks, Answer(thought, answer)),
        objects=tuple(
            SegmentedObject(f"obj{number + 1}", mask, kind, True, number == chosen) for number, (kind, mask) in enumerate(shown)
        ),
    )


def source(split: Split, *, seed: int = 0, length: int = 1 << 20, **options: Any) -> Findings:
    """Opens phantoms of several findings for recipes; `Findings` describes the options."""
    return Findings(split, seed=seed, length=length, **options)
