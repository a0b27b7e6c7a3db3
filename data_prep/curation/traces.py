"""Traces from label masks: questions whose reasoning and answer name objects, each with its mask, worded by templates.

    Which is larger: the oedema or the core?
    The oedema (<ver><obj1></ver>) covers 4.1 % of the image; its centre is in the ...
    The oedema (<vea><obj1></vea>).

An object is a connected part of a class. A question names it by its class, if the image shows one of them, or as the left or
the right (else the upper or the lower) one of two. Sides are those of the image as it is shown: further left is nearer to its
left edge. In an image in radiological convention, that is the patient's right. No text names a side of the patient.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np

from data_prep.curation.candidates import Rejected, seeded, seeded_rank
from data_prep.curation.detections import Detection
from data_prep.curation.rows import Outcome, image_file, keep_image, row_id
from vitar_jax.episodes.object_tags import without_tags
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Answer, Demonstration, Sample, SegmentedObject

SMALLEST = 16  # pixels of the smallest object; smaller parts are mostly slips of a drawing tool
LARGER = 1.2  # smallest ratio of areas that a question asks about
FURTHER = 0.1  # smallest distance between centres that a question asks about, as a share of the image's width or height
CLEAR = 0.02  # smallest distance of a centre to the border of a ninth of the image, as a share of its width or height
MOST = 8  # most objects that a trace names

ACROSS, DOWN = ("left", "middle", "right"), ("upper", "middle", "lower")


@dataclass(frozen=True)
class Outlined:
    """An object: its class, the words by which texts name it ("" if nothing tells it from others), and its mask."""

    name: str
    words: str
    mask: Mask

    @cached_property
    def centre(self) -> tuple[float, float]:
        """x and y of the centre, as shares of the image's width and height."""
        y, x = np.nonzero(self.mask.array)
        height, width = self.mask.shape
        return float(((x + 0.5) / width).mean()), float(((y + 0.5) / height).mean())

    @property
    def place(self) -> str:
        """The ninth of the image in which the centre lies, for example "upper left"."""
        across, down = (words[min(2, int(3 * at))] for words, at in zip((ACROSS, DOWN), self.centre, strict=True))
        return "centre" if across == down == "middle" else f"{down} {across}"

    def sentence(self, name: str) -> str:
        """Describes size and place of the object, whose name is `name` in the tags."""
        share = self.mask.area / np.prod(self.mask.shape)
        return (
            f"{_capital(self.words)} (<ver><{name}></ver>) covers {100 * share:.2g} % of the image; its centre is in the "
            f"{self.place} of the image."
        )


# By kind: how a question asks, what the trace concludes, and both directions.
COMPARISONS = {
    "size": ("Which is {}: {} or {}?", "{} is {}.", ("larger", "smaller")),
    "height": ("Which lies {} in the image: {} or {}?", "{} lies {}.", ("higher", "lower")),
    "side": ("Which lies {} in the image: {} or {}?", "{} lies {}.", ("further left", "further right")),
}


def make_traces(detections: Sequence[Detection], seed: int, count: int, output: Path) -> Outcome:
    """Words traces, and writes the images' pixels to `output/images`, named by hash.

    An image yields a comparison of each kind, the question of which kind is the largest, and one question per object about
    where it lies. A question without a clear answer is rejected.

    Args:
      count: Maximum number of traces. 0 means unlimited.
    """
    outcome, rows = Outcome(), []
    for detection in detections:
        objects, small = outlined(detection)
        outcome.rejected[f"object of fewer than {SMALLEST} pixels"] += small
        for row in _rows(detection, objects, seed, output):
            if isinstance(row, Rejected):
                outcome.rejected[str(row)] += 1
            else:
                rows.append((row, detection))
    outcome.rejected = +outcome.rejected  # without reasons that never occurred
    for row, detection in sorted(rows, key=lambda one: seeded_rank(seed, one[0].sample_id))[: count or None]:
        keep_image(detection, output)
        outcome.traces.append(row)
    return outcome


def outlined(detection: Detection) -> tuple[list[Outlined], int]:
    """Returns the objects of an image, and how many more were too small."""
    parts: dict[str, list[Outlined]] = {}
    for name, mask in detection.masks:
        if mask.area >= SMALLEST:
            parts.setdefault(name, []).append(Outlined(name, "", mask))
    objects = [replace(one, words=words) for some in parts.values() for one, words in zip(some, _words(some), strict=True)]
    return objects, len(detection.masks) - len(objects)


def _words(parts: Sequence[Outlined]) -> list[str]:
    """Returns the words by which texts name each object of a class."""
    name = parts[0].name
    if len(parts) == 1:
        return [f"the {name}"]
    if len(parts) == 2:
        for axis, sides in enumerate((("left", "right"), ("upper", "lower"))):
            first, second = (one.centre[axis] for one in parts)
            if abs(first - second) >= FURTHER:
                return [f"the {side} {name}" for side in (sides if first < second else sides[::-1])]
    return [""] * len(parts)


def _rows(detection: Detection, objects: Sequence[Outlined], seed: int, output: Path) -> Iterator[Sample | Rejected]:
    named = [one for one in objects if one.words]
    randoms = {kind: seeded(seed, f"{detection.sha256}:{kind}") for kind in COMPARISONS}
    asked: list[Callable[[], Trace]] = [partial(_comparison, kind, named, random) for kind, random in randoms.items()]
    asked += [partial(_largest, objects), *(partial(_where, one) for one in named if one.words == f"the {one.name}")]
    for ask in asked:
        try:
            yield ask().row(detection, output)
        except Rejected as error:
            yield error


@dataclass(frozen=True)
class Trace:
    """A worded question.

    Attributes:
      objects: Objects of the reasoning, by the names obj1, obj2, ... in this order.
      chosen: Index of the object of the answer.
      conclusion: Last sentence of the reasoning; may be empty.
      answer: Answer in words; the tags of its object follow.
      classes: Classes of the question, as in VRT-Bench: comp (comparison) and loc (location).
    """

    kind: str
    question: str
    objects: Sequence[Outlined]
    chosen: int
    conclusion: str
    answer: str
    classes: Sequence[str]

    def row(self, detection: Detection, output: Path) -> Sample:
        names = [f"obj{number}" for number in range(1, len(self.objects) + 1)]
        sentences = [one.sentence(name) for one, name in zip(self.objects, names, strict=True)]
        thought = " ".join(filter(None, [*sentences, self.conclusion]))
        answer = f"{self.answer} (<vea><{names[self.chosen]}></vea>)."
        return Sample(
            sample_id=row_id(detection, self.question),
            question=self.question,
            images=(str(image_file(detection, output)),),
            answer=without_tags(answer),
            boxes=(self.objects[self.chosen].mask.box,),
            metadata={"kind": self.kind, "finding": self.objects[self.chosen].name, "classes": [*self.classes]},
            demonstration=Demonstration((), Answer(thought, answer)),
            objects=tuple(
                SegmentedObject(name, one.mask, one.name, True, number == self.chosen)
                for number, (name, one) in enumerate(zip(names, self.objects, strict=True))
            ),
        )


def _comparison(kind: str, named: Sequence[Outlined], random: Random) -> Trace:
    """Asks which of two objects is larger, higher or further left, or the opposite.

    Two objects of one class are compared by size only, because their words name a side.
    """
    question, conclusion, directions = COMPARISONS[kind]
    pairs = [pair for pair in combinations(named, 2) if kind == "size" or pair[0].name != pair[1].name]
    if not pairs:
        raise Rejected(f"{kind}: no two objects to compare")
    for pair in random.sample(pairs, len(pairs)):
        less, more = sorted(pair, key=lambda one: _quantity(kind, one))
        low, high = _quantity(kind, less), _quantity(kind, more)
        if high >= LARGER * low if kind == "size" else high - low >= FURTHER:
            break
    else:
        raise Rejected(f"{kind}: no two objects that differ clearly")
    direction = random.randrange(2)
    right, objects = (more, less)[direction], random.sample(pair, 2)
    return Trace(
        kind=kind,
        question=question.format(directions[direction], *(one.words for one in objects)),
        objects=objects,
        chosen=objects.index(right),
        conclusion=conclusion.format(_capital(right.words), directions[direction]),
        answer=_capital(right.words),
        classes=("comp",) if kind == "size" else ("comp", "loc"),
    )


def _quantity(kind: str, one: Outlined) -> float:
    """Returns the quantity that is greater in the answer to the first direction of a comparison."""
    if kind == "size":
        return one.mask.area
    x, y = one.centre
    return -y if kind == "height" else -x


def _largest(objects: Sequence[Outlined]) -> Trace:
    """Asks which class has the largest object. The trace names the largest object of each class."""
    of_class: dict[str, Outlined] = {}
    for one in sorted(objects, key=lambda one: -one.mask.area):
        of_class.setdefault(one.name, one)
    largest = [*of_class.values()]
    if not 2 <= len(largest) <= MOST:
        raise Rejected(f"largest: fewer than 2 or more than {MOST} classes")
    if largest[0].mask.area < LARGER * largest[1].mask.area:
        raise Rejected("largest: no object that is clearly the largest")
    counts = Counter(one.name for one in objects)
    shown = [
        replace(one, words=f"the largest {one.name}" if counts[one.name] > 1 else f"the {one.name}")
        for one in sorted(largest, key=lambda one: one.name)
    ]
    chosen = next(number for number, one in enumerate(shown) if one.name == largest[0].name)
    return Trace(
        kind="largest",
        question="Of which kind is the largest object in the image?",
        objects=shown,
        chosen=chosen,
        conclusion=f"{_capital(shown[chosen].words)} is larger than the rest.",
        answer=_capital(shown[chosen].name),
        classes=("comp",),
    )


def _where(one: Outlined) -> Trace:
    if any(abs(at - border) < CLEAR for at in one.centre for border in (1 / 3, 2 / 3)):
        raise Rejected("where: an object between two parts of the image")
    return Trace(
        kind="where",
        question=f"Where in the image does {one.words} lie?",
        objects=[one],
        chosen=0,
        conclusion="",
        answer=f"In the {one.place}",
        classes=("loc",),
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
