"""Turns candidates into rows: words and checks the questions, adds demonstrations to some, and counts rejections."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from data_prep.curation.candidates import KINDS, Candidate, Kind, Rejected, Writer, candidates, seeded
from data_prep.curation.detections import Annotated, Detection, admit
from data_prep.curation.files import Ignored
from data_prep.reading.pixels import png_of
from vitar_jax.data.paths import nfc
from vitar_jax.episodes.regions import Box, Unit
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample, letters
from vitar_jax.episodes.tools import TOOLS, widened
from vitar_jax.errors import DataError, EndpointError
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.prefetch import prefetch

TOOL = "mark"
STOP_AFTER = 50  # consecutive failures at an endpoint that end the run


@dataclass(frozen=True)
class Settings:
    """Settings of row generation.

    Attributes:
      count: Maximum number of rows. 0 means unlimited.
      interactive: Share of the images whose rows get a demonstration.
      workers: Number of candidates processed concurrently.
      kinds: Kinds of questions.
    """

    seed: int
    count: int
    interactive: float
    workers: int
    kinds: Sequence[Kind] = KINDS


@dataclass
class Outcome:
    """Results of the candidates.

    Attributes:
      questions, interactive: Rows without and with a demonstration. No image has rows in both.
      traces: Rows with a trace whose every object has a mask.
      rejected: Number of rejected candidates, by reason.
      failed: Number of candidates that the next run retries, by kind of EndpointError.
    """

    questions: list[Sample] = field(default_factory=list)
    interactive: list[Sample] = field(default_factory=list)
    traces: list[Sample] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def rows(self, *, traces: bool) -> dict[str, list[Sample]]:
        """Returns the rows by the name of their file."""
        return {"traces": self.traces} if traces else {"questions": self.questions, "interactive": self.interactive}


@dataclass
class Admitted:
    """What the annotations describe.

    Attributes:
      detections: Distinct images that fit their annotations.
      malformed: An error message for each other record. It may name the file of a patient.
      ignored: Files that are neither an image nor an annotation.
    """

    detections: list[Detection] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)


def admit_all(records: Iterable[Annotated | Ignored | DataError], unit: Unit, workers: int) -> Admitted:
    """Checks all records. Of equal images with equal annotations, keeps the first; with different ones, it keeps none.

    Class names that differ only in case are one class, in the spelling that sorts first.

    Args:
      unit: Unit of the boxes, see `detections.admit`.
    """

    def attempt(record: Annotated | Ignored | DataError) -> tuple[str, Detection | Ignored | DataError]:
        if not isinstance(record, Annotated):
            return "", record
        try:
            return record.where, admit(record, unit)
        except DataError as error:
            return "", error

    made, first, contradicted = Admitted(), {}, set()
    with ThreadPoolExecutor(workers) as pool:
        for where, one in tqdm(prefetch(pool, attempt, records, 4 * workers), "images", unit="image", dynamic_ncols=True):
            if isinstance(one, Ignored):
                made.ignored.append(one.file)
            elif isinstance(one, DataError):
                made.malformed.append(str(one))
            elif (other := first.setdefault(one.sha256, (where, one))[1]) is not one:
                equal = (one.boxes, one.masks) == (other.boxes, other.masks)
                contradicted |= set() if equal else {one.sha256}
                made.malformed.append(
                    f"{where}: {one.image} is a duplicate of {other.image}{'' if equal else ', with other annotations'}"
                )
    for where, one in first.values():
        if one.sha256 in contradicted:
            made.malformed.append(f"{where}: {one.image} has a duplicate with other annotations")
        else:
            made.detections.append(one)
    made.detections = _one_spelling(made.detections)
    return made


def _one_spelling(detections: list[Detection]) -> list[Detection]:
    """Merges classes such as nodule and Nodule. As two classes, each would seem to be absent where the other is annotated."""
    spelling: dict[str, str] = {}
    for name in sorted({name for detection in detections for name in detection.boxes}):
        spelling.setdefault(nfc(name).casefold(), name)
    merged = []
    for detection in detections:
        boxes: dict[str, tuple[Box, ...]] = {}
        for name, some in detection.boxes.items():
            kept = spelling[nfc(name).casefold()]
            boxes[kept] = tuple(sorted((*boxes.get(kept, ()), *some), key=lambda box: box.xyxy))
        masks = [(spelling[nfc(name).casefold()], mask) for name, mask in detection.masks]
        masks.sort(key=lambda one: (one[0], one[1].box.xyxy))
        merged.append(replace(detection, boxes=dict(sorted(boxes.items())), masks=tuple(masks)))
    return merged


def make_rows(detections: Sequence[Detection], writer: Writer, settings: Settings, output: Path) -> Outcome:
    """Words and checks the questions, adds demonstrations, and writes the images' pixels to `output/images`, named by hash.

    Raises:
      EndpointError: If too many requests in a row fail.
      ConfigError: If an endpoint rejects the key or does not know the model.
    """
    todo = candidates(detections, settings.seed, settings.kinds)
    outcome, known, failures = Outcome(), set(), 0

    def attempt(candidate: Candidate) -> tuple[Detection, Sample | Rejected | EndpointError]:
        try:
            return candidate.detection, row_of(candidate, writer, settings, output)
        except (Rejected, EndpointError) as error:
            return candidate.detection, error

    with ThreadPoolExecutor(settings.workers) as pool, tqdm(todo, "rows", unit="row", dynamic_ncols=True) as bar:
        for detection, row in prefetch(pool, attempt, bar, 2 * settings.workers):
            failures = failures + 1 if isinstance(row, EndpointError) else 0
            if isinstance(row, EndpointError):
                outcome.failed[row.kind] += 1
                if failures == STOP_AFTER:
                    raise EndpointError(row.kind, f"{failures} failures in a row, the last: {row}; finished replies are kept")
            elif isinstance(row, Rejected) or row.sample_id in known:
                outcome.rejected[str(row) if isinstance(row, Rejected) else "duplicate question"] += 1
            else:
                known.add(row.sample_id)
                keep_image(detection, output)
                (outcome.interactive if row.demonstration else outcome.questions).append(row)
                if len(known) == settings.count:
                    break
    return outcome


def row_of(candidate: Candidate, writer: Writer, settings: Settings, output: Path) -> Sample:
    """Words and checks a question; returns its row, whose image lies in `output/images`.

    Raises:
      Rejected: If the candidate yields no row.
      EndpointError: If an endpoint fails.
    """
    detection = candidate.detection
    draft = writer.question(candidate)
    writer.verify(candidate, draft)
    shown = None
    if seeded(settings.seed, f"{detection.sha256}:interactive").random() < settings.interactive:
        try:
            boxes = tuple(widened(box, detection.size) for box in candidate.look)
        except ValueError as error:
            raise Rejected("image too small to mark") from error
        if len(boxes) > TOOLS[TOOL].max_boxes:
            raise Rejected("more boxes than the tool can mark")
        first, last = writer.thoughts(candidate, draft)
        shown = Demonstration((Look(first, TOOL, boxes),), Answer(last, draft.answer))
    return Sample(
        sample_id=row_id(detection, draft.question, draft.options),
        question=draft.question,
        images=(str(image_file(detection, output)),),
        answer=draft.answer,
        options=letters(draft.options, candidate.key),
        boxes=candidate.boxes,
        metadata={"kind": candidate.kind, "finding": candidate.finding} | ({"part": candidate.part} if candidate.part else {}),
        demonstration=shown,
    )


def row_id(detection: Detection, question: str, options: Sequence[str] = ()) -> str:
    """Returns the id of a row, which depends on the image's pixels and the question."""
    content = json.dumps([detection.sha256, question, options])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def image_file(detection: Detection, output: Path) -> Path:
    return output / "images" / f"{detection.sha256}.png"


def keep_image(detection: Detection, output: Path) -> None:
    """Writes the image's pixels to `output/images`, unless they are there."""
    file = image_file(detection, output)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_replace(file) as partial:
            partial.write_bytes(png_of(open_image(detection.image)))
