"""The expert `annotations`: it knows the boxes and the answer of its sample, and errs at stated rates."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from data_prep.gaze.regions import Expert, Finding, ScoredBox
from data_prep.gaze.search import searches
from vitar_jax.data.traces import Trace
from vitar_jax.episodes.regions import Box, Size, inside
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError

CONFIDENCE = (0.3, 0.6)  # of scanned regions: a first view does not tell which of them is the right one
COVERED = 0.5  # share of a box that a region has to cover to show it
FALSE_SIDES = (0.1, 0.3)  # sides of a false region, as shares of the image's
UNCLEAR = "unclear"  # the wrong answer to an open question
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Rates:
    """How often the expert errs.

    Attributes:
      misses: Share of the boxes that a scan does not return.
      false_regions: Share of the boxes beside which a scan returns a region where nothing is.
      wrong_answers: Share of the questions that are answered wrongly although the region was found.

    Raises:
      ValueError: If a rate is not between 0 and 1.
    """

    misses: float = 0.0
    false_regions: float = 0.0
    wrong_answers: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0 <= rate <= 1:
                raise ValueError(f"{name}: got {rate}, expected a share from 0 to 1")


@dataclass(frozen=True)
class Annotated(Expert):
    """An expert that knows the boxes and the answer of a sample. What it answers depends only on its attributes.

    A scan returns the boxes that show the answer (`Sample.boxes`) and other findings (`metadata["other_boxes"]`) with
    confidences that do not tell them apart. Drilling does. The answer is right if the region shows the answer. Otherwise the
    expert guesses among the options, or between yes and no, or says "unclear". A sample without boxes has nothing to be
    missed: its answer is right but for `wrong_answers`.

    Attributes:
      names: Names of the sample's boxes and of the other boxes, in this order. If empty, there are none.
      clear, refuted: Confidences after drilling into a region that shows the answer, and into any other.
      shows, shows_other, shows_nothing: Sentences of a drill. `{name}` is the name of the box.
    """

    sample: Sample
    rates: Rates = Rates()
    seed: int = 0
    names: Sequence[str] = ()
    clear: float = 0.95
    refuted: float = 0.05
    shows: str = "It shows what the question is about."
    shows_other: str = "It shows another finding."
    shows_nothing: str = "It shows nothing abnormal."

    @cached_property
    def scope(self) -> str:
        """The sample's id and a hash of all that the answers depend on."""
        known = (self.rates, self.seed, self.names, self.clear, self.refuted, self.shows, self.shows_other, self.shows_nothing)
        facts = [repr(known), self.sample.answer, self.sample.options, self._boxes]
        return f"{self.sample.sample_id}:{hashlib.sha256(json.dumps(facts, default=repr).encode()).hexdigest()}"

    def scan(self, image: Image.Image) -> list[ScoredBox]:
        found = []
        gold, others = self._inside(image.size)
        for number, box in enumerate((*gold, *others)):
            draws = self._draws(f"box {number}")
            missed, false = draws.random() < self.rates.misses, draws.random() < self.rates.false_regions
            if not missed:
                found.append(ScoredBox(box, draws.uniform(*CONFIDENCE)))
            if false:
                found.append(ScoredBox(_somewhere(image.size, draws), draws.uniform(*CONFIDENCE)))
        self._draws("order").shuffle(found)  # the order must not tell the right box either
        return found

    def drill(self, image: Image.Image, region: Box) -> Finding:
        gold, others = self._inside(image.size)
        names = self.names or [""] * (len(gold) + len(others))
        if len(names) != len(gold) + len(others):
            raise DataError(
                f"sample {self.sample.sample_id}: got {len(names)} names, expected one per box: {len(gold) + len(others)}"
            )
        for number, box in enumerate((*gold, *others)):
            if _covered(box, region) >= COVERED:
                right = number < len(gold)
                sentence = (self.shows if right else self.shows_other).format(name=names[number])
                return Finding(self.clear if right else self.refuted, sentence)
        return Finding(self.refuted, self.shows_nothing)

    def answer(self, image: Image.Image, question: str, region: Box | None) -> str:
        gold, _ = self._inside(image.size)
        draws = self._draws(f"answer {region and region.xyxy}")
        right, letters = self.sample.answer, [letter for letter, _ in self.sample.options]
        choices = letters or ([*YES_NO] if right.lower() in YES_NO else [])
        if gold and (region is None or max(_covered(box, region) for box in gold) < COVERED):
            return draws.choice(choices) if choices else UNCLEAR
        if draws.random() >= self.rates.wrong_answers:
            return right
        wrong = [choice for choice in choices if choice.lower() != right.lower()]
        return draws.choice(wrong) if wrong else UNCLEAR

    @cached_property
    def _boxes(self) -> tuple[list[Box], list[Box]]:
        """The boxes that show the answer, and the others."""
        others = self.sample.metadata.get("other_boxes", [])
        try:
            return [*self.sample.boxes], [Box(*map(float, box), frame="original") for box in others]
        except (TypeError, ValueError) as error:
            raise DataError(
                f"sample {self.sample.sample_id}: other_boxes: got {others!r}, expected a list of [left, upper, right, lower] "
                f"({error})"
            ) from error

    def _inside(self, size: Size) -> tuple[list[Box], list[Box]]:
        try:
            gold, others = ([inside(box, size) for box in boxes] for boxes in self._boxes)
        except ValueError as error:
            raise DataError(f"sample {self.sample.sample_id}: boxes: {error}") from error
        return gold, others

    def _draws(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}:{self.sample.sample_id}:{what}")


def annotated_searches(sample: Sample) -> tuple[Trace, ...]:
    """Returns six searches of a sample with boxes, without errors: traces by function, for `experts=dict(traces=...)`."""
    return searches(sample, Annotated(sample))


def _covered(box: Box, region: Box) -> float:
    """Returns the share of the box that lies in the region."""
    width = min(box.x2, region.x2) - max(box.x1, region.x1)
    height = min(box.y2, region.y2) - max(box.y1, region.y1)
    return max(0.0, width) * max(0.0, height) / box.area


def _somewhere(size: Size, draws: random.Random) -> Box:
    edges = []
    for side in size:
        length = side * draws.uniform(*FALSE_SIDES)
        start = draws.uniform(0, side - length)
        edges.append((start, start + length))
    (x1, x2), (y1, y2) = edges
    return Box(x1, y1, x2, y2, "original")
