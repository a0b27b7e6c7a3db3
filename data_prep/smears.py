"""Questions about real blood smears (BCCD) for `configs/quickstart_cells.py`, with an expert that zooms.

The questions are those of `data_prep.curate`, answered in words: whether a quadrant shows platelets ("part"), which cell is at
a point ("finding"), how many white cells the image or a half of it shows ("count"). The first view has 84 x 56 pixels, in which
a platelet has about 5. The expert zooms the part, or a window around the point. That is the reference box of a sample, whatever
the answer, so that a box does not give the answer away.

Held-out samples are whole smears. Training samples are windows of smears, also mirrored, because there are few smears. Sample i
is a pure function of (seed, task, i).
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from data_prep.curation.candidates import MOSTLY, PARTS, Candidate, Draft, Kind, Rejected, of_box, of_part
from data_prep.curation.detections import Detection
from data_prep.curation.templates import QUESTIONS, TemplateWriter
from data_prep.phantom.items import Items
from data_prep.phantom.tokenizer import build_tokenizer
from data_prep.reading.published import Published
from data_prep.sets.bccd import CLASSES, read_smears, rows
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.regions import Box, Size, centre
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import ConfigError, DataError

Task = Literal["look", "warmup"]
Split = Literal["train", "test"]

ASKED: dict[Kind, tuple[str, ...]] = {"part": ("Platelets",), "finding": CLASSES, "count": ("WBC",)}
VIEW: Size = (84, 56)  # width and height of the first view of a smear of 640 x 480 pixels
WINDOW: Size = (32, 21)  # size of the look at a point, in pixels of the first view; a white cell has about 30 x 23
GRID: Size = (3, 2)  # cells of the view that "Where" questions of the warm-up ask about, which are the model's image tokens
WHERE_QUESTION = "Where does the image show {finding}?"
WARMUP: tuple[Kind | Literal["where"], ...] = (*ASKED, "where")  # kinds of the warm-up; those of looks are all but the last
ANSWERS = {"part": ("Yes", "No"), "count": ("0", "1", "2")}
COUNTED = (0.45, 0.45, 0.1)  # shares of the answers to "count"; few smears show two white cells
TRIES = 1000

PAIRS = {  # rows of the table of which the first should lead
    "two looks after SFT over one": ("two_looks_sft", "one_look"),
    "two looks after GRPO over one": ("two_looks_grpo", "one_look"),
    "the box from the truth over a random one": ("oracle_box", "random_box"),
}

WORDS = ("Does", "Can", "can", "How", "many", "does", "show", "be", "seen", "quadrant", "half", *CLASSES)


def thought(box: Box) -> str:
    """Returns the thought of a turn that zooms, which says nothing of the box."""
    del box
    return "zoom"


def save_tokenizer(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes the phantoms' tokenizer with the words of these questions, and the fixed parts of the longest ones as tokens."""
    phrases = [part for template in QUESTIONS["finding"] for part in re.split(r"\{[^}]*\}", template) if len(part) > 2]
    build_tokenizer((*phrases, *extra), WORDS).save_pretrained(directory)


# --- samples --------------------------------------------------------------------------------------


def source(
    split: Split, *, directory: str, task: Task = "look", seed: int = 0, length: int = 1 << 20
) -> "list[Sample] | Smears":
    """Opens the smears of a published folder for recipes.

    Args:
      split: "train" makes `length` samples of the published training and validation images. "test" has the balanced questions
        about the published test images, which do not depend on the other arguments.
      task: See `Smears`.

    Raises:
      ConfigError: If `directory` is empty.
      DataError: If the folder lacks a file, or one is damaged.
      ValueError: If another argument has an invalid value.
    """
    for value, kind in ((split, Split), (task, Task)):
        if value not in get_args(kind):
            raise ValueError(f"got {value!r}, expected one of {', '.join(get_args(kind))}")
    if not directory:
        raise ConfigError("smears: directory must be set to the published folder of BCCD (--config.data.source=DIR)")
    smears = _read(directory)
    if split == "test":
        return held_out(smears["test"])
    return Smears((*smears["train"], *smears["validation"]), seed=seed, length=length, task=task)


@lru_cache(maxsize=4)
def _read(directory: str) -> dict[str, list[Detection]]:
    return read_smears(Published(directory))


def held_out(smears: Sequence[Detection]) -> list[Sample]:
    """Returns the questions about whole smears, without demonstrations. Every cell is asked about equally often."""
    by_cell: dict[str, list[Sample]] = defaultdict(list)
    for smear, row in rows(smears, 0, tuple(ASKED)):
        kind, finding = row.metadata["kind"], row.metadata["finding"]
        if finding in ASKED[kind]:
            look = row.boxes[0] if kind in PARTS else look_box(centre(row.boxes[0]), smear.size)
            answer = dict(row.options)[row.answer]
            sample = replace(row, images=(str(smear.image),), answer=answer, options=(), boxes=(look,))
            by_cell[finding if kind == "finding" else ""].append(sample)
    others = by_cell.pop("", [])
    fewest = min(map(len, by_cell.values()), default=0)
    chosen = [sample for some in by_cell.values() for sample in some[:fewest]] + others
    order = np.random.default_rng(0).permutation(len(chosen))
    return [chosen[place] for place in order]


def look_box(point: tuple[float, float], size: Size) -> Box:
    """Returns the window of `WINDOW` around a point, in frame "original", moved inside the image. Corners are view pixels."""
    edges = []
    for at, side, view, width in zip(point, size, VIEW, WINDOW, strict=True):
        first = min(max(round(at / side * view - width / 2), 0), view - width)
        edges.append((first * side / view, (first + width) * side / view))
    (left, right), (top, bottom) = edges
    return Box(left, top, right, bottom, "original")


@dataclass(frozen=True)
class Smears(Items):
    """A random-access source of training samples. Item i depends only on the arguments and i.

    Tasks:
      look: A question about a window of at least 65 % of a smear's sides, mostly all of it. The demonstration zooms once.
      warmup: The same questions, and in which cells of a grid a class is, about windows of 25 to 100 %, shrunk to the first
        view. They are answered in plain text.

    Kinds of questions are equally frequent, and so are the answers of each kind, but for the number 2.
    """

    smears: tuple[Detection, ...] = field(repr=False)
    _: KW_ONLY
    seed: int
    length: int
    task: Task

    @cached_property
    def _showing(self) -> dict[str, list[Detection]]:
        """The smears that show each class, and all by the name ""."""
        return {"": [*self.smears]} | {name: [one for one in self.smears if name in one.boxes] for name in CLASSES}

    def _item(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, get_args(Task).index(self.task), index])
        name = f"smear-{self.task}-{self.seed}-{index}"
        kind = WARMUP[rng.integers(len(ASKED) + (self.task == "warmup"))]
        finding = str(rng.choice(("Platelets", "WBC") if kind == "where" else ASKED[kind]))
        answer = str(rng.choice(ANSWERS.get(kind, ("",)), p=COUNTED if kind == "count" else None))
        for _ in range(TRIES):
            if (sample := self._drawn(rng, name, kind, finding, answer)) is not None:
                return sample
        raise DataError(f"{name}: {finding}: no window of a smear yields the question {kind!r} after {TRIES} draws")

    def _drawn(
        self, rng: np.random.Generator, name: str, kind: Kind | Literal["where"], finding: str, answer: str
    ) -> Sample | None:
        """Draws a window and a question about it; None if the boxes leave its answer unclear or give another one."""
        smears = self._showing["" if answer in ("No", "0") else finding]
        smear = smears[rng.integers(len(smears))] if smears else None
        if smear is None:
            return None
        share = min(1.0, rng.uniform(0.65, 1.15)) if self.task == "look" else rng.uniform(0.25, 1.0)
        window = _window(rng, smear, share)
        seen, unclear = window.seen(name, CLASSES if kind == "finding" else (finding,))
        boxes = seen.boxes.get(finding, ())
        if finding in unclear or (not boxes and kind in ("finding", "where")):
            return None
        if kind == "where":
            return _where(name, finding, seen, window)
        if kind == "finding":
            candidate = of_box(seen, finding, boxes[rng.integers(len(boxes))])
        else:
            parts = ("",) if self.task == "warmup" and rng.random() < 0.5 else PARTS[kind]
            candidate = of_part(seen, kind, finding, parts[rng.integers(len(parts))])
            if candidate.answer != answer:
                return None
        writer = TemplateWriter(CLASSES, self.seed)
        try:
            draft = writer.question(candidate)
            writer.verify(candidate, draft)
        except Rejected:
            return None
        return _sample(name, candidate, draft, window, shown=self.task == "look")


@dataclass(frozen=True)
class _Window:
    """A window of a smear, mirrored or not along each axis."""

    smear: Detection
    left: int
    top: int
    size: Size
    mirrored: tuple[bool, bool]

    def seen(self, name: str, classes: Sequence[str]) -> tuple[Detection, set[str]]:
        """Returns the boxes of some classes in the window, and those of them with a box neither mostly in it nor outside."""
        width, height = self.size
        found: dict[str, list[Box]] = defaultdict(list)
        unclear = set()
        for finding in classes:
            for box in self.smear.boxes.get(finding, ()):
                x1, x2 = (min(max(x - self.left, 0), width) for x in (box.x1, box.x2))
                y1, y2 = (min(max(y - self.top, 0), height) for y in (box.y1, box.y2))
                share = (x2 - x1) * (y2 - y1) / box.area
                if share >= MOSTLY:
                    x1, x2 = (width - x2, width - x1) if self.mirrored[0] else (x1, x2)
                    y1, y2 = (height - y2, height - y1) if self.mirrored[1] else (y1, y2)
                    found[finding].append(Box(x1, y1, x2, y2, "original"))
                elif share > 1 - MOSTLY:
                    unclear.add(finding)
        boxes = {finding: tuple(sorted(some, key=lambda box: box.xyxy)) for finding, some in sorted(found.items())}
        return Detection(self.smear.image, name, self.size, boxes), unclear

    def image(self, view: Size | None = None) -> Image.Image:
        """Returns the window in its own size, or resized to `view`."""
        width, height = self.size
        place = self.left, self.top, self.left + width, self.top + height
        smear = _opened(self.smear.image)
        picture = smear.resize(view, Image.Resampling.BICUBIC, place, reducing_gap=2.0) if view else smear.crop(place)
        picture = ImageOps.mirror(picture) if self.mirrored[0] else picture
        return ImageOps.flip(picture) if self.mirrored[1] else picture


def _window(rng: np.random.Generator, smear: Detection, share: float) -> _Window:
    width, height = (round(side * share) for side in smear.size)
    left, top = (int(rng.integers(side - part + 1)) for side, part in zip(smear.size, (width, height), strict=True))
    across, down = map(bool, rng.integers(2, size=2))
    return _Window(smear, left, top, (width, height), (across, down))


@lru_cache(maxsize=1024)
def _opened(path: Path) -> Image.Image:
    """Returns the decoded smear. All of them take about 300 MB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def _sample(name: str, candidate: Candidate, draft: Draft, window: _Window, *, shown: bool) -> Sample:
    answer = draft.answer_text
    (look,) = candidate.look
    if candidate.kind == "finding":
        look = look_box(centre(look), window.size)
    demonstration = Demonstration((Look(thought(look), "zoom", (look,)),), Answer(f"shows {answer}", answer))
    return Sample(
        sample_id=name,
        question=draft.question,
        images=(window.image(None if shown else VIEW),),
        answer=answer,
        boxes=(look,) if shown else (),
        metadata={"kind": candidate.kind, "finding": candidate.finding, "part": candidate.part},
        demonstration=demonstration if shown else None,
    )


def _where(name: str, finding: str, seen: Detection, window: _Window) -> Sample:
    """Asks in which cells of `GRID`, row by row, the centre of a box is."""
    across, down = GRID
    there = {
        int(y / seen.size[1] * down) * across + int(x / seen.size[0] * across) for x, y in map(centre, seen.boxes[finding])
    }
    answer = " ".join("yes" if cell in there else "no" for cell in range(across * down))
    question = WHERE_QUESTION.format(finding=finding)
    return Sample(name, question, (window.image(VIEW),), answer, metadata={"kind": "where", "finding": finding})


# --- the table of the quickstart ------------------------------------------------------------------


def part_right(trajectory: Trajectory) -> float | None:
    """Returns whether the answer to a question of kind "part" is right; None for other kinds."""
    return _right(trajectory, "part")


def finding_right(trajectory: Trajectory) -> float | None:
    """Returns whether the answer to a question of kind "finding" is right; None for other kinds."""
    return _right(trajectory, "finding")


def count_right(trajectory: Trajectory) -> float | None:
    """Returns whether the answer to a question of kind "count" is right; None for other kinds."""
    return _right(trajectory, "count")


def _right(trajectory: Trajectory, kind: str) -> float | None:
    if trajectory.metadata["kind"] != kind:
        return None
    return float(exact_match(trajectory.predicted_answer, *trajectory.gold_answers))


def what_looking_pays(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a sentence per pair of `PAIRS`: the lead, and whether the 95 % intervals of the two rows are disjoint."""
    said = []
    for name, (first, second) in PAIRS.items():
        lead = results[first]["accuracy"] - results[second]["accuracy"]
        disjoint = results[first]["interval"][0] > results[second]["interval"][1]
        said.append(f"Lead of {name}: {100 * lead:+.1f} points ({'more' if disjoint else 'not more'} than the intervals).")
    return "\n".join(said)
