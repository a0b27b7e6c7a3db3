"""A user's own questions as a data set: split by patient, and stripped of data that identifies patients.

The question file has the format of `vitar_jax.data.questions`, with four optional columns:

    patient, study   patient and visit; written as patient-1, study-1, ... in the order of the file
    site             where the images were acquired; written unchanged
    split            train, test, ...; given for all questions or for none

Without `split`, a hash assigns each patient to a split, independently of the other rows. Without `patient`, the PatientID of
the DICOM file is used. Without that, or with a placeholder such as NONE, questions with the same first image count as one
patient. An image is known by its path in the folder of images: two files of one name in two folders are two images.

Only pixels are written: DICOM headers and EXIF data are dropped. A text that repeats a name, date, number or UID from the DICOM
header of its image is an error.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.building.own_images import OwnImage, OwnImages
from data_prep.building.records import DataSet, Record
from data_prep.reading.bad_records import refuse
from data_prep.reading.identifiers import held_by, is_placeholder
from data_prep.reading.published import ImageFile
from vitar_jax.data import questions
from vitar_jax.data.paths import nfc, path_key
from vitar_jax.episodes.regions import Box, Mask, Region, Size, Unit, inside
from vitar_jax.episodes.sample import Demonstration, Sample
from vitar_jax.errors import ConfigError, DataError, ImageError

OWN = DataSet(
    name="own",
    title="Questions of your own",
    url="",
    licence="that of the owner; do not redistribute without permission",
    citation="",
    layout="a .csv or .jsonl file of questions; docs/data.md lists the columns",
)
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_COLUMNS = ("patient", "study", "split")  # not written unchanged
_LISTED = 20  # questions named in a warning


def shares_from(text: str) -> dict[str, float]:
    """Parses "train:0.8,test:0.2".

    Raises:
      ConfigError: If a name or number is invalid, or the shares do not add up to 1.
    """
    try:
        shares = {name.strip(): float(share) for name, share in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise ConfigError(f"--shares={text}: expected NAME:SHARE,..., such as train:0.8,test:0.2") from None
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6 or not all(map(_is_split, shares)):
        raise ConfigError(f"--shares={text}: expected positive shares that add up to 1, and lower-case names such as train")
    return shares


@dataclass
class Own:
    """A question file and its images.

    Attributes:
      work: Folder for the images that have been read. They must stay there until the set has been built.
      images: Folder that relative image paths start from. If empty, the folder of the file.
      boxes: Unit of the boxes, see `questions.read`.
      skip_bad: Whether to leave out invalid records.
      bad: The errors of the records that were left out. Filled by `read`, as are the following ones.
      with_text: Ids of questions with an image that seems to have text near its border.
      patients: First images by patient, who is empty if unknown.
      empty: Splits that no question was drawn for.
    """

    file: Path
    work: Path
    images: str | Path = ""
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    boxes: Unit = ""
    skip_bad: bool = False
    bad: list[DataError] = field(default_factory=list)
    with_text: list[str] = field(default_factory=list)
    patients: dict[str, set[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def read(self) -> dict[str, list[Record]]:
        """Returns the records by split. Reads each image once.

        Raises:
          BadRecords: If records are invalid (`questions.read`), have an image that cannot be read or a box outside of it, lack
            a split that others have, or repeat an identifier of a patient.
          DataError: If the file cannot be read or has no valid question, or if its boxes are probably in thousandths.
        """
        opened = OwnImages(self.work)
        rows = list(questions.read_rows(self.file, self.images, self.boxes, self.bad, opened.size_of))
        count = len(rows) + len(self.bad)
        has_splits = any("split" in sample.metadata for _, sample in rows)
        if not self.boxes:
            questions.refuse_thousandths([sample for _, sample in rows], self.file, opened.size_of)
        splits: dict[str, list[Record]] = {} if has_splits else {name: [] for name in self.shares}
        names = _Numbered()
        for where, sample in tqdm(rows, "reading", unit=" questions", disable=None):
            try:
                split, record = self._record(sample, where, has_splits, opened, names)
            except DataError as error:
                self.bad.append(error)
            else:
                splits.setdefault(split, []).append(record)
        self.bad.sort(key=self._line)
        refuse(self.file, self.bad, count, skip_bad=self.skip_bad)
        if not any(splits.values()):
            raise DataError(f"{self.file}: holds no {'valid ' if count else ''}questions")
        self.empty = [split for split, records in splits.items() if not records]
        return {split: records for split, records in splits.items() if records}

    def _line(self, error: DataError) -> int:
        return int(str(error).removeprefix(f"{self.file}:").partition(":")[0])

    def _record(
        self, sample: Sample, where: str, has_splits: bool, opened: OwnImages, names: "_Numbered"
    ) -> tuple[str, Record]:
        """Checks a question and its images; returns its split and its record."""
        column = {key: nfc(str(sample.metadata.get(key, "")).strip()) for key in _COLUMNS}
        if has_splits and not column["split"]:
            raise DataError(f"{where}: split is missing, but other questions have one")
        if has_splits and not _is_split(column["split"]):
            raise DataError(f"{where}: got split {column['split']!r}, expected a lower-case word")
        try:
            images = [opened.read(str(path)) for path in sample.images]
        except ImageError as error:
            raise DataError(f"{where}: image: {error}") from error
        sample = _within_images(sample, [image.size for image in images], where)
        metadata = {key: value for key, value in sample.metadata.items() if key not in _COLUMNS}
        _refuse_identifiers(sample, metadata, images, where)
        patient, study = ("" if is_placeholder(column[key]) else column[key] for key in ("patient", "study"))
        first = path_key(str(sample.images[0]), Path(self.images or self.file.parent)) if sample.images else ""
        patient = patient or (images[0].patient if images else "")
        self.patients.setdefault(patient, set()).add(first)
        if any(image.has_text for image in images):
            self.with_text.append(sample.sample_id)
        metadata |= names.of(patient=patient, study=study)
        split = column["split"] or self._drawn(patient or first or sample.sample_id)
        files = [ImageFile(f"{n} of {sample.sample_id}", image.png.read_bytes) for n, image in enumerate(images)]
        return split, Record(replace(sample, images=(), metadata=metadata), tuple(files), where, patient)

    def warnings(self) -> list[str]:
        """Returns warnings about records that were left out, splits, patients and images. Names no patient."""
        said = self._one_patient()
        if self.empty:
            said.append(
                f"No question is in {', '.join(self.empty)}: the shares are of patients or images, of which there are too few."
            )
        if self.bad:
            lines = [str(self._line(error)) for error in self.bad]
            said.append(f"{len(lines)} invalid records were left out, in the lines {_some(lines)}.")
        if self.with_text:
            said.append(
                f"{len(self.with_text)} questions have an image that seems to have text near its border; check that it names "
                f"nobody. They are {_some(self.with_text)}."
            )
        return said

    def _one_patient(self) -> list[str]:
        known = {patient: images for patient, images in self.patients.items() if patient}
        if len(known) != 1 or (number := len(*known.values())) < 2:
            return []
        return [
            f"All {number} images with a patient have the same one, so they are in one split. If it is a placeholder, give "
            "the patients in a column `patient`."
        ]

    def _drawn(self, key: str) -> str:
        """Returns the split of a group of questions that must stay together, by a hash of `key`."""
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        place, end = int.from_bytes(digest[:8], "big") / 2**64, 0.0
        for split, share in self.shares.items():
            end += share
            if place < end:
                return split
        return list(self.shares)[-1]


class _Numbered:
    """Numbers in place of patients and studies, in the order of the file."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._counts: Counter[str] = Counter()

    def of(self, **values: str) -> dict[str, str]:
        """Returns a numbered name for each value that is not empty: patient="x" becomes patient="patient-1"."""
        for key, value in values.items():
            if value and (key, value) not in self._names:
                self._counts[key] += 1
                self._names[key, value] = f"{key}-{self._counts[key]}"
        return {key: self._names[key, value] for key, value in values.items() if value}


def _refuse_identifiers(sample: Sample, kept: Mapping[str, Any], images: Sequence[OwnImage], where: str) -> None:
    found = {value: keyword for image in images for value, keyword in image.identifiers.items()}
    shown = sample.demonstration.to_json() if sample.demonstration else ""
    texts = {"id": sample.sample_id, "question": sample.question, "answer": (sample.answer, sample.answers)}
    texts["objects"] = [one.caption for one in sample.objects]
    for key, text in {**texts, "options": sample.options, "demonstration": shown, **kept}.items():
        if keyword := held_by(str(text), found):
            raise DataError(f"{where}: {key} repeats the {keyword} of its image; leave it out")


def _within_images(sample: Sample, sizes: Sequence[Size], where: str) -> Sample:
    """Returns a sample whose regions lie on its images, in pixels. Regions on images that tools return cannot be checked.

    Raises:
      DataError: If a box lies outside its image, or a mask has another size.
    """

    def checked(region: Region, image: int) -> Region:
        if image >= len(sizes):
            return region
        if not isinstance(region, Mask):
            return inside(region, sizes[image])
        if region.frame == "original" and region.shape != sizes[image][::-1]:
            raise ValueError(f"got a mask of shape {region.shape}, expected that of the image, {sizes[image][::-1]}")
        return region

    try:
        if sample.objects and not sizes:
            raise ValueError("got objects, but no image")
        for one in sample.objects:
            checked(one.mask, 0)
    except ValueError as error:
        raise DataError(f"{where}: objects: {error}") from error
    try:
        others = [Box(*box, frame="original") for box in sample.metadata.get(questions.OTHER_BOXES, [])]
        if (sample.boxes or others) and not sizes:
            raise ValueError("got boxes, but no image")
        boxes = tuple(inside(box, sizes[0]) for box in sample.boxes)
        kept = {questions.OTHER_BOXES: [list(inside(box, sizes[0]).xyxy) for box in others]} if others else {}
        shown = sample.demonstration
        if shown:
            looks = [replace(look, regions=tuple(checked(one, look.image) for one in look.regions)) for look in shown.looks]
            shown = Demonstration(tuple(looks), shown.answer)
    except ValueError as error:
        raise DataError(f"{where}: boxes: {error}") from error
    return replace(sample, boxes=boxes, demonstration=shown, metadata={**sample.metadata, **kept})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _is_split(name: str) -> bool:
    return re.fullmatch("[a-z][a-z0-9_]*", name) is not None
