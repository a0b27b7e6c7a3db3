"""What can be asked of a detection data set: which finding, where, and whether; and what a writer makes of it."""

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
MOSTLY = 0.75  # of a box's area that lies where the box is said to be


class Rejected(Exception):
    """A candidate becomes no row; its message is the reason, for counting."""


@dataclass(frozen=True)
class Candidate:
    """Something to ask of one image.

    Attributes:
      key: names it, whatever the files are called; draws are seeded with it.
      finding: the class that is asked about.
      point: for kind "finding", where it is asked about: (x, y) as shares of the image's sides.
      boxes: where the answer is to be seen; empty where the finding is not there.
      look: where an expert looks: at `boxes`, else at what else is there, else everywhere.
    """

    key: str
    detection: Detection
    kind: Kind
    finding: str
    boxes: tuple[Box, ...]
    look: tuple[Box, ...]
    point: tuple[float, float] = (0.0, 0.0)

    def holds(self, option: str) -> bool:
        """Whether this is a right answer, by the boxes alone."""
        if self.kind == "finding":
            return any(_inside(self.point, box, self.detection.size) for box in self.detection.boxes.get(option, ()))
        if self.kind == "presence":
            return (option == "Yes") == (self.finding in self.detection.boxes)
        return all(_share(box, option, self.detection.size) >= MOSTLY for box in self.boxes)


@dataclass(frozen=True)
class Draft:
    """A worded candidate; `answer` is the letter of an option, A for the first."""

    question: str
    options: tuple[str, ...]
    answer: str

    @property
    def answer_text(self) -> str:
        return self.options[ascii_uppercase.index(self.answer)]


class Writer(Protocol):
    """Who words candidates, and checks what was worded. All may raise Rejected, or EndpointError for another try later."""

    def question(self, candidate: Candidate) -> Draft: ...

    def verify(self, candidate: Candidate, draft: Draft) -> None:
        """Raises Rejected where the answer is not the one right option."""
        ...

    def thoughts(self, candidate: Candidate, draft: Draft) -> tuple[str, str]:
        """What an expert thinks before marking `candidate.look`, and after having seen it marked."""
        ...


def candidates(detections: Sequence[Detection], seed: int) -> list[Candidate]:
    """All that can be asked, in an order drawn with the seed.

    Of every class that an image shows: which finding is at a point in one of its boxes, in which quadrant it is, on which
    side. And of every image whether a class is there; only of classes that some images show and others do not, and with as
    many that are as are not, drawn from all of them.
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
    """Whether one of the classes is there: as often one that is as one that is not, where there are both."""
    random = seeded(seed, f"{detection.sha256}:presence")
    there = [name for name in classes if name in detection.boxes]
    others = [name for name in classes if name not in detection.boxes]
    finding = random.choice(there if there and (not others or random.random() < 0.5) else others)
    boxes = detection.boxes.get(finding, ())
    everything = tuple(box for of_a_class in detection.boxes.values() for box in of_a_class)
    look = boxes or everything or (Box(0, 0, *detection.size, "original"),)
    return Candidate(f"{detection.sha256}:{finding}:presence", detection, "presence", finding, boxes, look)


def _in_order(some: Sequence[Candidate], seed: int) -> list[Candidate]:
    """As drawn with the seed, whatever order they come in."""
    return sorted(some, key=lambda candidate: hashlib.sha256(f"{seed}:{candidate.key}".encode()).digest())


def seeded(seed: int, key: str) -> Random:
    """Draws that depend on the seed and the key alone."""
    return Random(f"{seed}:{key}")


def _inside(point: tuple[float, float], box: Box, size: tuple[int, int]) -> bool:
    x, y = point[0] * size[0], point[1] * size[1]
    return box.x1 <= x <= box.x2 and box.y1 <= y <= box.y2


def _share(box: Box, place: str, size: tuple[int, int]) -> float:
    """Of a box's area, what lies in a half or quadrant: "left", "upper left"."""
    middle_x, middle_y = size[0] / 2, size[1] / 2
    left, upper = max(0.0, min(box.x2, middle_x) - box.x1) / box.width, max(0.0, min(box.y2, middle_y) - box.y1) / box.height
    across = left if "left" in place else 1 - left if "right" in place else 0
    down = upper if "upper" in place else 1 - upper if "lower" in place else 1
    return across * down
