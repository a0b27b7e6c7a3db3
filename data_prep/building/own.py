"""A user's own questions as a data set: split by patient, and stripped of data that identifies patients.

The question file has the format of `vitar_jax.data.questions`, with four optional columns:

    patient, study   patient and visit; written as patient-1, study-1, ... in the order of the file
    site             where the images were acquired; written unchanged
    split            train, test, ...; given for all questions or for none

Without `split`, a hash assigns each patient to a split, independently of the other rows. Without `patient`, the PatientID of
the DICOM file is used. Without that, or with a placeholder such as NONE, questions with the same first image count as one
patient.

Only pixels are written: DICOM headers and EXIF data are dropped. A text that repeats a name, date, number or UID from the DICOM
header of its image is an error.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.reading.burned_in import has_text
from data_prep.reading.identifiers import held_by, identifiers, is_placeholder, patient_of
from data_prep.reading.pixels import png_of
from data_prep.reading.published import ImageFile
from vitar_jax.data import questions
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image

OWN = DataSet(
    name="own",
    title="Questions of your own",
    url="",
    licence="that of the owner; do not redistribute without permission",
    citation="",
    layout="a .csv or .jsonl file of questions; data_prep/README.md lists the columns",
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
      with_text: Ids of questions with an image that seems to have text near its border. Filled as images are read.
      patients: First images by patient, who is empty if unknown. Filled by `read`.
    """

    file: Path
    images: str | Path = ""
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    with_text: dict[str, None] = field(default_factory=dict)  # in order
    patients: dict[str, set[str]] = field(default_factory=dict)

    def read(self) -> dict[str, list[Record]]:
        """Returns the records by split.

        Raises:
          DataError: If the file is invalid (`questions.read`), a split is malformed or missing, or a text identifies a patient.
        """
        samples = questions.read(self.file, self.images)
        if any(given := ["split" in sample.metadata for sample in samples]) and not all(given):
            raise DataError(f"{self.file}, question {given.index(False)}: split is missing, but other questions have one")
        splits: dict[str, list[Record]] = {} if any(given) else {name: [] for name in self.shares}
        names: dict[str, dict[str, str]] = {"patient": {}, "study": {}}
        for number, sample in enumerate(samples):
            where = f"{self.file}, question {number}"
            given_names = {key: str(sample.metadata.get(key, "")).strip() for key in _COLUMNS}
            given_names |= {key: "" for key in names if is_placeholder(given_names[key])}
            metadata = {key: value for key, value in sample.metadata.items() if key not in _COLUMNS}
            _refuse_identifiers(sample, metadata, where)
            first = str(sample.images[0]) if sample.images else ""
            patient = given_names["patient"] = given_names["patient"] or (patient_of(first) if first else "")
            self.patients.setdefault(patient, set()).add(first)
            for key, numbered in names.items():
                if value := given_names[key]:
                    metadata[key] = numbered.setdefault(value, f"{key}-{len(numbered) + 1}")
            split = given_names["split"] or self._drawn(patient or Path(first).name or sample.sample_id)
            if not _is_split(split):
                raise DataError(f"{where}: got split {split!r}, expected a lower-case word")
            images = tuple(self._image(path, sample.sample_id, n) for n, path in enumerate(map(str, sample.images)))
            record = Record(replace(sample, images=(), metadata=metadata), images, where, patient)
            splits.setdefault(split, []).append(record)
        return {split: records for split, records in splits.items() if records}

    def warnings(self) -> list[str]:
        """Returns warnings about the patients, and about the images read so far."""
        found, said = list(self.with_text), self._one_patient()
        if not found:
            return said
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        return [
            *said,
            f"{len(found)} questions have an image that seems to have text near its border; check that it names nobody. "
            f"They are {', '.join(found[:_LISTED])}{more}."
        ]

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

    def _image(self, path: str, sample_id: str, number: int) -> ImageFile:
        def read() -> bytes:
            picture = open_image(path)
            if has_text(picture):
                self.with_text[sample_id] = None
            return png_of(picture)

        return ImageFile(f"{number} of {sample_id}", read)


def _refuse_identifiers(sample: Sample, kept: Mapping[str, Any], where: str) -> None:
    found = {value: keyword for path in sample.images for value, keyword in identifiers(str(path)).items()}
    texts = {"id": sample.sample_id, "question": sample.question, "answer": sample.answer, "options": sample.options}
    for key, text in {**texts, **kept}.items():
        if keyword := held_by(str(text), found):
            raise DataError(f"{where}: {key} repeats the {keyword} of its image; leave it out")


def _is_split(name: str) -> bool:
    return re.fullmatch("[a-z][a-z0-9_]*", name) is not None
