"""Possible questions about a detection data set (which finding, where, whether, how many), and the writers that word them."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import Literal, Protocol

from data_prep.curation.detections import Detection
from vitar_jax.episodes.regions import Box, Size, centre

Kind = Literal["finding", "quadrant", "side", "presence", "part", "count"]

KINDS: tuple[Kind, ...] = ("finding", "quadrant", "side", "presence")  # asked unless others are chosen
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
SIDES = ("left", "right")
YES_NO = ("Yes", "No")
COUNTS = ("0", "1", "2", "3")
PARTS: Mapping[Kind, tuple[str, ...]] = {
    "part": tuple(f"{quadrant} quadrant" for quadrant in QUADRANTS),
    "count": ("", *(f"{side} half" for side in SIDES)),
}
MOSTLY = 0.75  # share of each box's area that must lie in the half or quadrant of the answer


class Rejected(Exception):
    """A candidate yields no row. The message is the reason, by which the report counts it."""


@dataclass(frozen=True)
class Candidate:
    """A possible question about one image.

    Attributes:
      key: Identifies the candidate, independently of file names. Seeds its random choices.
      finding: Class that the question is about.
      boxes: Boxes that show the answer. Empty if the finding is absent. For the kinds "part" and "count", the part of the image
        that the question names, because the boxes of the finding would give the answer away.
      look: Boxes that an expert marks: `boxes`. If empty, the other findings' boxes. Without any, the whole image.
      point: Point that a question of kind "finding" names: (x, y) as shares of the image's width and height.
      part: Part of the image that a question of kind "part" or "count" names, such as "left half". Empty for the whole image.
    """

    key: str
    detection: Detection
    kind: Kind
    finding: str
    boxes: tuple[Box, ...]
    look: tuple[Box, ...]
    point: tuple[float, float] = (0.0, 0.0)
    part: str = ""

    @property
    def where(self) -> str:
        """The part in words, such as "the left half of the image"."""
        return f"the {self.part} of the image" if self.part else "the image"

    @property
    def answer(self) -> str:
        """The answer of kind "part" or "count" according to the boxes. Empty if a box on a border makes it unclear."""
        boxes = self.detection.boxes.get(self.finding, ())
        shares = [_share(box, self.part, self.detection.size) if self.part else 1.0 for box in boxes]
        inside = sum(share >= MOSTLY for share in shares)
        clear = all(share >= MOSTLY or share <= 1 - MOSTLY for share in shares)
        if self.kind == "part":
            return "Yes" if inside else "No" if clear else ""
        return str(inside) if clear else ""

    def holds(self, option: str) -> bool:
        """Returns whether `option` is a correct answer according to the boxes."""
        if self.kind == "finding":
            return any(_inside(self.point, box, self.detection.size) for box in self.detection.boxes.get(option, ()))
        if self.kind == "presence":
            return (option == "Yes") == (self.finding in self.detection.boxes)
        if self.kind in PARTS:
            return option == self.answer
        return all(_share(box, option, self.detection.size) >= MOSTLY for box in self.boxes)


@dataclass(frozen=True)
class Draft:
    """A worded candidate. `answer` is the letter of an option; the first is A."""

    question: str
    options: tuple[str, ...]
    answer: str

    @property
    def answer_text(self) -> str:
        return self.options[ascii_uppercase.index(self.answer)]


class Writer(Protocol):
    """A writer of candidates. Every method may raise Rejected, or EndpointError if the next run should retry."""

    def question(self, candidate: Candidate) -> Draft: ...

    def verify(self, candidate: Candidate, draft: Draft) -> None:
        """Raises Rejected unless the answer is the only correct option."""
        ...

    def thoughts(self, candidate: Candidate, draft: Draft) -> tuple[str, str]:
        """Returns an expert's thoughts before marking `candidate.look`, and after seeing it marked."""
        ...


def candidates(detections: Sequence[Detection], seed: int, kinds: Sequence[Kind] = KINDS) -> list[Candidate]:
    """Returns all candidates, in a random order that depends on the seed.

    Each class on an image yields three: which finding is at a point in one of its boxes, in which quadrant it is, and on which
    side. Each image also yields one about the presence of a class. These concern only classes that some images show and others
    do not. The more frequent of the answers yes and no is subsampled at random, so that both are equally frequent.

    Kind "part" asks whether a quadrant shows a class, and kind "count" how many of a class the image or a half of it shows. Of
    each class and part, the most frequent answer is subsampled at random, so that it is as frequent as the second.
    """
    classes = sorted({name for detection in detections for name in detection.boxes})
    varying = [name for name in classes if any(name not in detection.boxes for detection in detections)]
    made: list[Candidate] = []
    present: list[Candidate] = []
    absent: list[Candidate] = []
    for detection in detections:
        for finding, boxes in detection.boxes.items():
            key = f"{detection.sha256}:{finding}"
            box = seeded(seed, key).choice(boxes)
            made.append(of_box(detection, finding, box))
            made.append(Candidate(f"{key}:quadrant", detection, "quadrant", finding, boxes, boxes))
            made.append(Candidate(f"{key}:side", detection, "side", finding, boxes, boxes))
        if varying:
            asked = _presence(detection, varying, seed)
            (present if asked.boxes else absent).append(asked)
    for some in (present, absent):
        made += _in_order(some, seed)[: min(len(present), len(absent))]
    made = [candidate for candidate in made if candidate.kind in kinds]
    for kind, parts in PARTS.items():
        for name in classes if kind in kinds else ():
            for part in parts:
                made += _balanced([of_part(detection, kind, name, part) for detection in detections], seed)
    return _in_order(made, seed)


def of_box(detection: Detection, finding: str, box: Box) -> Candidate:
    """Returns the question of which finding is at the centre of a box."""
    x, y = (round(at / side, 2) for at, side in zip(centre(box), detection.size, strict=True))
    return Candidate(f"{detection.sha256}:{finding}:finding", detection, "finding", finding, (box,), (box,), (x, y))


def of_part(detection: Detection, kind: Kind, finding: str, part: str) -> Candidate:
    """Returns a question about a part of an image: whether it shows a class (kind "part"), or how many (kind "count")."""
    box = (part_box(part, detection.size),)
    return Candidate(f"{detection.sha256}:{finding}:{kind}:{part}", detection, kind, finding, box, box, part=part)


def part_box(part: str, size: Size) -> Box:
    """Returns the box of a part such as "left half" or "upper left quadrant", in frame "original". Empty is the whole image."""
    x, y = size[0] / 2, size[1] / 2
    left, upper = x * ("right" in part), y * ("lower" in part)
    return Box(left, upper, x if "left" in part else 2 * x, y if "upper" in part else 2 * y, "original")


def _balanced(asked: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Subsamples the most frequent answer. Keeps candidates that will be rejected, so that the report counts them."""
    answers: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in _in_order(asked, seed):
        answers[candidate.answer].append(candidate)
    valid = [answers.pop(answer) for answer in (*YES_NO, *COUNTS) if answer in answers]
    second = sorted(map(len, [[], *valid]))[-2]
    return [candidate for some in [*(group[:second] for group in valid), *answers.values()] for candidate in some]


def _presence(detection: Detection, classes: Sequence[str], seed: int) -> Candidate:
    """Asks whether a class is present. Present and absent classes are equally likely if the image has both."""
    random = seeded(seed, f"{detection.sha256}:presence")
    there = [name for name in classes if name in detection.boxes]
    others = [name for name in classes if name not in detection.boxes]
    finding = random.choice(there if there and (not others or random.random() < 0.5) else others)
    boxes = detection.boxes.get(finding, ())
    everything = tuple(box for of_a_class in detection.boxes.values() for box in of_a_class)
    look = boxes or everything or (Box(0, 0, *detection.size, "original"),)
    return Candidate(f"{detection.sha256}:{finding}:presence", detection, "presence", finding, boxes, look)


def _in_order(some: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Returns the candidates in a random order that depends on the seed, not on the given order."""
    return sorted(some, key=lambda candidate: seeded_rank(seed, candidate.key))


def seeded_rank(seed: int, key: str) -> bytes:
    """Returns a sort key by which items have a random order that depends only on the seed and their keys."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def seeded(seed: int, key: str) -> Random:
    """Returns a random generator that depends only on the seed and the key."""
    return Random(f"{seed}:{key}")


def _inside(point: tuple[float, float], box: Box, size: tuple[int, int]) -> bool:
    x, y = point[0] * size[0], point[1] * size[1]
    return box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2


def _share(box: Box, place: str, size: tuple[int, int]) -> float:
    """Returns the share of the box's area that lies in a half or quadrant, such as "left" or "upper left"."""
    middle_x, middle_y = size[0] / 2, size[1] / 2
    left, upper = max(0.0, min(box.x2, middle_x) - box.x1) / box.width, max(0.0, min(box.y2, middle_y) - box.y1) / box.height
    across = left if "left" in place else 1 - left if "right" in place else 0
    down = upper if "upper" in place else 1 - upper if "lower" in place else 1
    return across * down
