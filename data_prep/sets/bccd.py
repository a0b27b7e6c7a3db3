"""BCCD: microscope images of blood smears with boxes of red cells (RBC), white cells (WBC) and platelets.

The set has boxes and no questions. The questions are those that `data_prep.curate` makes of boxes from templates, of all its
kinds. Each published list of images is a split, and answers are balanced within it (`curation.candidates`). No question asks
whether or how many red cells there are, because the boxes of red cells are incomplete.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from data_prep.building.records import DataSet, Record
from data_prep.curation import voc
from data_prep.curation.candidates import Candidate, Kind, Rejected, candidates
from data_prep.curation.detections import Annotated, Detection, admit
from data_prep.curation.rows import Settings, row_of
from data_prep.curation.templates import TemplateWriter
from data_prep.reading.published import ImageFile, Published
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError

CLASSES = ("Platelets", "RBC", "WBC")
ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"
LISTS = {split: f"ImageSets/Main/{name}.txt" for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))}
SEED = 0  # of the questions


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    return {split: _records(smears) for split, smears in read_smears(published).items()}


def read_smears(published: Published) -> dict[str, list[Detection]]:
    """Returns the smears with their boxes, by split, in the order of the lists.

    Raises:
      DataError: If a folder, a list or an annotation is missing, or a record is malformed and `published` collects no errors.
    """
    lists = {split: published.file(name) for split, name in LISTS.items()}
    files = {path.stem for path in published.files(f"{ANNOTATIONS}/*.xml")}
    annotated: dict[str, Annotated] = {}
    for record in published.records(voc.read(published.folder / ANNOTATIONS, published.folder / IMAGES), _valid):
        annotated[Path(record.where).stem] = record

    def smear(name: str, listed: Path) -> Detection | None:
        if name not in files:
            raise DataError(f"{listed}: {name} has no file in {ANNOTATIONS}")
        return _smear(annotated[name]) if name in annotated else None  # its error has been collected

    found: dict[str, list[Detection]] = {}
    for split, listed in lists.items():
        smears = published.records(listed.read_text().split(), partial(smear, listed=listed))
        found[split] = [one for one in smears if one is not None]
    return found


def rows(smears: Sequence[Detection], seed: int, kinds: Sequence[Kind]) -> Iterator[tuple[Detection, Sample]]:
    """Yields questions about smears, whose answers are letters of options. They have no images and no demonstrations."""
    writer, settings = TemplateWriter(CLASSES, seed), Settings(seed, count=0, interactive=0.0, workers=1)
    for candidate in filter(_reliable, candidates(smears, seed, kinds)):
        try:
            sample = row_of(candidate, writer, settings, Path())
        except Rejected:
            continue
        yield candidate.detection, replace(sample, sample_id=f"{candidate.detection.image.stem}-{sample.sample_id}", images=())


def _records(smears: Sequence[Detection]) -> Iterator[Record]:
    for smear, sample in rows(smears, SEED, get_args(Kind)):
        path = smear.image
        yield Record(sample, (ImageFile(path.name, path.read_bytes),), f"{IMAGES}/{path.name}, {sample.sample_id}")


def _reliable(candidate: Candidate) -> bool:
    return candidate.finding != "RBC" or candidate.kind not in ("presence", "part", "count")


def _valid(record: Annotated | DataError) -> Annotated:
    if isinstance(record, DataError):
        raise record
    return record


def _smear(record: Annotated) -> Detection:
    smear = admit(record)
    if unknown := smear.boxes.keys() - set(CLASSES):
        raise DataError(f"{record.where}: got class {', '.join(sorted(unknown))}, expected {', '.join(CLASSES)}")
    kept = {name: tuple(box for box in boxes if min(box.width, box.height) > 1) for name, boxes in smear.boxes.items()}
    return replace(smear, boxes={name: boxes for name, boxes in kept.items() if boxes})


SET = DataSet(
    name="bccd",
    title="BCCD: blood smears with boxes of red cells, white cells and platelets",
    url="https://github.com/Shenggan/BCCD_Dataset",
    licence="MIT",
    citation="Shenggan Cheng, BCCD Dataset, 2017",
    layout=f"{ANNOTATIONS}/*.xml, {IMAGES}/*.jpg and the lists {', '.join(LISTS.values())}",
    notes=(
        "The authors publish boxes alone; templates of data_prep.curate word the questions.",
        "163 of the 364 images have no platelet. Two boxes of red cells are one pixel large and are left out.",
        "Boxes of red cells are incomplete, so no question asks whether there are any, or how many.",
    ),
)
