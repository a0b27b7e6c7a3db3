"""Built data sets: ArrayRecord files that tensorflow-datasets writes and reads, without TensorFlow.

A built set is a folder DATA_DIR/NAME/VERSION that holds its shards, `dataset_info.json`, `card.json` and `CARD.md`. It is
written to a temporary folder and then moved into place, so a built set is always complete.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.building.card import Card, write_card
from data_prep.building.leaks import Contents
from data_prep.building.records import DataSet, Record
from data_prep.reading.bad_records import refuse
from data_prep.reading.published import ImageFile
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Demonstration, Sample, SegmentedObject
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image, pixels_sha256

tfds.disable_progress_bar()  # replaced by a bar that counts questions


def build(
    dataset: DataSet,
    splits: Mapping[str, Iterable[Record]],
    data_dir: Path,
    *,
    origin: str,
    checksums: Mapping[str, str],
    notes: Callable[[], list[str]] = list,
    bad: list[DataError] | None = None,
    skip_bad: bool = False,
) -> Card:
    """Builds a data set. Replaces an existing build once the new one is complete.

    Args:
      origin: Where the files come from, for the card.
      checksums: SHA-256 of the files that were read.
      notes: Returns further notes for the card. Called after all records have been read.
      bad: Collects the errors of single records; the records' readers may add theirs. If None, the first one is raised.
      skip_bad: Whether to leave out the records with errors in `bad`.

    Raises:
      BadRecords: If there are errors in `bad`, unless `skip_bad`. Nothing is written then, nor after another error.
      DataError: If a split or record is invalid or an image cannot be read.
    """
    final = folder(data_dir, dataset)
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dataset.name}-", dir=data_dir) as work:
        writing = _Writing(dataset.name, bad, skip_bad)
        builder = _builder(dataset, splits, writing, work)
        with contextlib.redirect_stdout(io.StringIO()):  # hides its messages about downloads
            builder.download_and_prepare(file_format="array_record")
        writing.refuse()
        made = Path(work) / dataset.name / dataset.version
        card = Card.of(dataset, origin, checksums, writing.contents, writing.digest(), notes())
        write_card(card, made)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(Path(work) / "replaced")
        made.rename(final)
    return card


def folder(data_dir: str | os.PathLike[str], dataset: DataSet) -> Path:
    """Returns the folder of a built set."""
    return Path(data_dir) / dataset.name / dataset.version


@dataclass
class _Writing:
    """An encoder of records, which collects the contents, checksums and ids of the set that is being written."""

    name: str
    bad: list[DataError] | None
    skip_bad: bool
    count: int = 0  # valid records
    contents: Contents = field(default_factory=Contents)
    images: dict[str, str] = field(default_factory=dict)  # SHA-256 by image name
    pixels: dict[str, str] = field(default_factory=dict)  # pixel hash by SHA-256, so that each file is decoded once
    where: dict[str, str] = field(default_factory=dict)  # location by sample_id, for error messages

    def examples(self, split: str, records: Iterable[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Checks and encodes the records of a split; yields (number, example). Adds the errors of invalid records to `bad`."""
        for number, record in enumerate(tqdm(records, desc=split, unit=" questions", disable=None)):
            try:
                example = self._example(split, record)
            except DataError as error:
                if self.bad is None:
                    raise
                self.bad.append(error)
            else:
                self.count += 1
                yield number, example
        if split not in self.contents.records:
            self.refuse()
            why = f"; all {len(self.bad)} records are invalid, the first: {self.bad[0]}" if self.bad and not self.count else ""
            raise DataError(f"split {split}: no questions found{why}")

    def refuse(self) -> None:
        """Raises BadRecords if records are invalid, unless they are to be left out."""
        if self.bad:
            refuse(self.name, self.bad, self.count + len(self.bad), skip_bad=self.skip_bad)

    def _example(self, split: str, record: Record) -> dict[str, Any]:
        sample = record.sample
        if sample.sample_id in self.where:
            raise DataError(f"{record.where}: duplicate id {sample.sample_id}, first at {self.where[sample.sample_id]}")
        letters = [letter for letter, _ in sample.options]
        for answer in filter(None, (sample.answer, *sample.answers)):
            if letters and answer not in letters:
                raise DataError(f"{record.where}: answer: got {answer!r}, expected one of {', '.join(letters)}")
        contents = [self._image(image, record.where) for image in record.images]
        hashes = [hashlib.sha256(content).hexdigest() for content in contents]
        self.where[sample.sample_id] = record.where
        self.images |= {image.name: sha256 for image, sha256 in zip(record.images, hashes, strict=True)}
        self.contents.add(split, [self.pixels[sha256] for sha256 in hashes], record.patient)
        return encode(sample, contents)

    def _image(self, image: ImageFile, where: str) -> bytes:
        try:
            content = image.read()
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 not in self.pixels:
                self.pixels[sha256] = pixel_hash(content)
        except ImageError as error:
            reason = str(error).removeprefix("an image in memory: ")
            raise DataError(f"{where}: image {image.name}: {reason}") from error
        except Exception as error:  # a damaged archive raises many types
            raise DataError(f"{where}: image {image.name}: cannot be read ({error!r})") from error
        return content

    def digest(self) -> str:
        """Returns a SHA-256 over the names and contents of all images."""
        lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(self.images.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def pixel_hash(content: bytes) -> str:
    """Returns a hash of the size and colours that an episode sees. It is equal for different encodings of one picture.

    Raises:
      ImageError: If the image cannot be read.
    """
    return pixels_sha256(open_image(content).convert("RGB"))


# --- one record -------------------------------------------------------------------------------------

# Values without a fixed shape are JSON: TFDS stores floats in 32 bits only, and boxes must be restored exactly.
FEATURES = {name: tfds.features.Text() for name in ("sample_id", "question", "answer", "options", "boxes", "metadata")}
FEATURES["demonstration"] = tfds.features.Text(doc="JSON of looks and answer; empty if unknown")
IMAGES = tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_, doc="content of the published file"))


def encode(sample: Sample, images: list[bytes]) -> dict[str, Any]:
    """Encodes a sample and the contents of its image files as a TFDS example."""
    shown = sample.demonstration
    more = {"answers": sample.answers, "segmented_objects": [one.to_json() for one in sample.objects]}
    metadata = {**sample.metadata, **{name: values for name, values in more.items() if values}}
    return {
        "sample_id": sample.sample_id,
        "question": sample.question,
        "answer": sample.answer,
        "options": _json(sample.options),
        "boxes": _json([_box(box) for box in sample.boxes]),
        "metadata": _json(metadata),
        "demonstration": _json(shown.to_json()) if shown else "",
        "images": images,
    }


def decode(example: Mapping[str, Any]) -> Sample:
    """Decodes a sample and its images; the inverse of `encode`.

    Raises:
      ImageError: If an image cannot be read.
    """
    text = {name: example[name].decode() for name in FEATURES}
    demonstration = None
    if text["demonstration"]:
        demonstration = Demonstration.from_json(json.loads(text["demonstration"]), text["answer"])
    metadata = json.loads(text["metadata"])
    answers = tuple(map(str, metadata.pop("answers", ())))
    objects = tuple(map(SegmentedObject.from_json, metadata.pop("segmented_objects", ())))
    return Sample(
        sample_id=text["sample_id"],
        question=text["question"],
        images=tuple(open_image(content) for content in example["images"]),
        answer=text["answer"],
        options=tuple((letter, option) for letter, option in json.loads(text["options"])),
        boxes=tuple(Box(*box) for box in json.loads(text["boxes"])),
        metadata=metadata,
        demonstration=demonstration,
        answers=answers,
        objects=objects,
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _box(box: Box) -> tuple[Any, ...]:
    return (*box.xyxy, box.frame)


def _builder(dataset: DataSet, splits: Mapping[str, Iterable[Record]], writing: _Writing, data_dir: str) -> Any:
    """Returns the TFDS builder of a data set."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset.name
        VERSION = tfds.core.Version(dataset.version)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=dataset.title,
                features=tfds.features.FeaturesDict({**FEATURES, "images": IMAGES}),
                homepage=dataset.url,
                citation=dataset.citation,
                license=dataset.licence,
                disable_shuffling=True,  # keeps the order of the files; grain shuffles later
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            return writing.examples(split, splits[split])

    return Builder(data_dir=data_dir, file_format="array_record")
