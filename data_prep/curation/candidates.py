"""Possible questions about a detection data set (which finding, where, whether present), and the writers that word them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import Literal, Protocol

from data_prep.curation.detections import Detection
from vitar_jax.episodes.regions import Box, centre

Kind = Literal["finding", "quadrant", "side", "presence"]

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
SIDES = ("left", "right")
YES_NO = ("Yes", "No")
MOSTLY = 0.75  # share of each box's area that must lie in the half or quadrant of the answer


class Rejected(Exception):
    """A candidate yields no row. The message is the reason, by which the report counts it."""


@dataclass(frozen=True)
class Candidate:
    """A possible question about one image.

    Attributes:
      key: Identifies the candidate, independently of file names. Seeds its random choices.
      finding: Class that the question is about.
      boxes: Boxes that show the answer. Empty if the finding is absent.
      look: Boxes that an expert marks: `boxes`. If empty, the other findings' boxes. Without any, the whole image.
      point: Point that a question of kind "finding" names: (x, y) as shares of the image's width and height.
    """

    key: str
    detection: Detection
    kind: Kind
    finding: str
    boxes: tuple[Box, ...]
    look: tuple[Box, ...]
    point: tuple[float, float] = (0.0, 0.0)

    def holds(self, option: str) -> bool:
        """Returns whether `option` is a correct answer according to the boxes."""
        if self.kind == "finding":
            return any(_inside(self.point, box, self.detection.size) for box in self.detection.boxes.get(option, ()))
        if self.kind == "presence":
            return (option == "Yes") == (self.finding in self.detection.boxes)
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


def candidates(detections: Sequence[Detection], seed: int) -> list[Candidate]:
    """Returns all candidates, in a random order that depends on the seed.

    Each class on an image yields three: which finding is at a point in one of its boxes, in which quadrant it is, and on which
    side. Each image also yields one about the presence of a class. These concern only classes that some images show and others
    do not. The more frequent of the answers yes and no is subsampled at random, so that both are equally frequent.
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
            x, y = (round(at / side, 2) for at, side in zip(centre(box), detection.size, strict=True))
            made.append(Candidate(f"{key}:finding", detection, "finding", finding, (box,), (box,), (x, y)))
            made.append(Candidate(f"{key}:quadrant", detection, "quadrant", finding, boxes, boxes))
            made.append(Candidate(f"{key}:side", detection, "side", finding, boxes, boxes))
        if varying:
            asked = _presence(detection, varying, seed)
            (present if asked.boxes else absent).append(asked)
    for some in (present, absent):
        made += _in_order(some, seed)[: min(len(present), len(absent))]
    return _in_order(made, seed)


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
