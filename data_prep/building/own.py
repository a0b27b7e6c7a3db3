"""Questions of one's own as a data set: kept apart by patient, without what says who the patients are.

The file is that of `vitar_jax.data.questions`, with four more columns that it may have:

    patient, study   whose images these are, and of which visit: written as patient-1, study-1, ... in the order of the file
    site             where they were made: written as it is
    split            train, test, ...: of all questions, or of none

Without `split` a patient falls into one by a hash: the same one whatever else the file holds. Where `patient` is missing it is
the PatientID of a DICOM file; failing that, each first image is a patient.

Images are written as their pixels alone: neither DICOM headers nor EXIF come along. A text that repeats a name, date, number or
UID of its image's DICOM header is refused.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.building.records import DataSet, Record
from data_prep.reading.burned_in import has_text
from data_prep.reading.identifiers import held_by, identifiers, patient_of
from data_prep.reading.published import ImageFile
from vitar_jax.data import questions
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image

OWN = DataSet(
    name="own",
    title="Questions of your own",
    url="",
    licence="its owner's; not to be passed on unless they say so",
    citation="",
    layout="a .csv or .jsonl of questions; what columns it may have is in data_prep/README.md",
)
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_COLUMNS = ("patient", "study", "split")  # not kept as they are
_LISTED = 20  # questions named in a warning


def shares_from(text: str) -> dict[str, float]:
    """Reads "train:0.8,test:0.2".

    Raises:
      ConfigError: a name or number is none, or they do not add up to 1.
    """
    try:
        shares = {name.strip(): float(share) for name, share in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise ConfigError(f"--shares={text}: must read like train:0.8,test:0.2") from None
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6 or not all(map(_is_split, shares)):
        raise ConfigError(f"--shares={text}: each must be more than 0 and all together 1, of names like train")
    return shares


@dataclass
class Own:
    """A file of questions and its images.

    Attributes:
      with_text: ids of the questions that have an image with text near its border, once their images have been read.
    """

    file: Path
    images: str | Path = ""
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    with_text: dict[str, None] = field(default_factory=dict)  # in order

    def read(self) -> dict[str, list[Record]]:
        """Records by split.

        Raises:
          DataError: what `questions.read` says; or a split is malformed, or not given for all; or a text identifies a patient.
        """
        samples = questions.read(self.file, self.images)
        if any(given := ["split" in sample.metadata for sample in samples]) and not all(given):
            raise DataError(f"{self.file}, question {given.index(False)}: split is missing, and others have one")
        splits: dict[str, list[Record]] = {} if any(given) else {name: [] for name in self.shares}
        names: dict[str, dict[str, str]] = {"patient": {}, "study": {}}
        for number, sample in enumerate(samples):
            where = f"{self.file}, question {number}"
            given_names = {key: str(sample.metadata.get(key, "")).strip() for key in _COLUMNS}
            metadata = {key: value for key, value in sample.metadata.items() if key not in _COLUMNS}
            _refuse_identifiers(sample, metadata, where)
            first = str(sample.images[0]) if sample.images else ""
            patient = given_names["patient"] = given_names["patient"] or (patient_of(first) if first else "")
            for key, numbered in names.items():
                if value := given_names[key]:
                    metadata[key] = numbered.setdefault(value, f"{key}-{len(numbered) + 1}")
            split = given_names["split"] or self._drawn(patient or Path(first).name or sample.sample_id)
            if not _is_split(split):
                raise DataError(f"{where}: split is {split!r}, it must be a word of small letters")
            images = tuple(self._image(path, sample.sample_id, n) for n, path in enumerate(map(str, sample.images)))
            record = Record(replace(sample, images=(), metadata=metadata), images, where, patient)
            splits.setdefault(split, []).append(record)
        return {split: records for split, records in splits.items() if records}

    def warnings(self) -> list[str]:
        """What was seen in images that have been read."""
        found = list(self.with_text)
        if not found:
            return []
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        return [
            f"{len(found)} questions have an image that seems to have text near its border: look whether it names anybody. "
            f"They are {', '.join(found[:_LISTED])}{more}."
        ]

    def _drawn(self, key: str) -> str:
        """The split of whatever must not be torn apart."""
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
            content = io.BytesIO()
            # A new image, for one that was opened would pass on what its file says beside its pixels.
            Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(content, "PNG")
            return content.getvalue()

        return ImageFile(f"{number} of {sample_id}", read)


def _refuse_identifiers(sample: Sample, kept: Mapping[str, Any], where: str) -> None:
    found = {value: keyword for path in sample.images for value, keyword in identifiers(str(path)).items()}
    texts = {"id": sample.sample_id, "question": sample.question, "answer": sample.answer, "options": sample.options}
    for key, text in {**texts, **kept}.items():
        if keyword := held_by(str(text), found):
            raise DataError(f"{where}: {key} repeats the {keyword} of its image; leave it out")


def _is_split(name: str) -> bool:
    return re.fullmatch("[a-z][a-z0-9_]*", name) is not None
