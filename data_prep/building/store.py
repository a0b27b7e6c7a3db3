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
from data_prep.reading.published import ImageFile
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Demonstration, Sample
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image, pixels_sha256

tfds.disable_progress_bar()  # ours counts questions


def build(
    dataset: DataSet,
    splits: Mapping[str, Iterable[Record]],
    data_dir: Path,
    *,
    origin: str,
    checksums: Mapping[str, str],
    notes: Callable[[], list[str]] = list,
) -> Card:
    """Builds a data set. Replaces an existing build once the new one is complete.

    Args:
      origin: Where the files come from, for the card.
      checksums: SHA-256 of the files that were read.
      notes: Returns further notes for the card. Called after all records have been read.

    Raises:
      DataError: If a split or record is invalid or an image cannot be read. Nothing is written then.
    """
    final = folder(data_dir, dataset)
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dataset.name}-", dir=data_dir) as work:
        writing = _Writing()
        builder = _builder(dataset, splits, writing, work)
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads
            builder.download_and_prepare(file_format="array_record")
        made = Path(work) / dataset.name / dataset.version
        card = Card.of(dataset, origin, checksums, writing.contents, writing.digest(), notes())
        write_card(card, made)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(Path(work) / "replaced")
        made.rename(final)
    return card


def folder(data_dir: str | os.PathLike[str], dataset: DataSet) -> Path:
    """Where a set lies once it is built."""
    return Path(data_dir) / dataset.name / dataset.version


@dataclass
class _Writing:
    """What is learnt about a set while it is written."""

    contents: Contents = field(default_factory=Contents)
    images: dict[str, str] = field(default_factory=dict)  # sha256 by name
    pixels: dict[str, str] = field(default_factory=dict)  # hash of the pixels by sha256, so that each is decoded once
    where: dict[str, str] = field(default_factory=dict)  # by sample_id

    def examples(self, split: str, records: Iterable[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(tqdm(records, desc=split, unit=" questions", disable=None)):
            sample = record.sample
            if sample.sample_id in self.where:
                raise DataError(f"{record.where}: {sample.sample_id} is there twice, first at {self.where[sample.sample_id]}")
            self.where[sample.sample_id] = record.where
            letters = [letter for letter, _ in sample.options]
            if sample.answer and letters and sample.answer not in letters:
                raise DataError(f"{record.where}: answer is {sample.answer!r}, it must be one of {', '.join(letters)}")
            contents = [self._image(image, record.where) for image in record.images]
            self.contents.add(split, [self.pixels[hashlib.sha256(content).hexdigest()] for content in contents], record.patient)
            yield number, encode(sample, contents)
        if split not in self.contents.records:
            raise DataError(f"split {split}: holds no questions")

    def _image(self, image: ImageFile, where: str) -> bytes:
        try:
            content = image.read()
            sha256 = self.images[image.name] = hashlib.sha256(content).hexdigest()
            if sha256 not in self.pixels:
                self.pixels[sha256] = pixel_hash(content)
        except ImageError as error:
            reason = str(error).removeprefix("an image in memory: ")
            raise DataError(f"{where}: image {image.name}: {reason}") from error
        except Exception as error:  # a damaged archive raises anything at all
            raise DataError(f"{where}: image {image.name}: cannot be read ({error!r})") from error
        return content

    def digest(self) -> str:
        """sha256 over all images' names and contents."""
        lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(self.images.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def pixel_hash(content: bytes) -> str:
    """Hash of size and colours as an episode will see them: equal for one picture in several encodings.

    Raises:
      ImageError: the image cannot be read.
    """
    return pixels_sha256(open_image(content).convert("RGB"))


# --- one record -------------------------------------------------------------------------------------

# Whatever has no fixed shape is JSON: TFDS keeps floats in 32 bits only, and boxes have to come back as they were.
FEATURES = {name: tfds.features.Text() for name in ("sample_id", "question", "answer", "options", "boxes", "metadata")}
FEATURES["demonstration"] = tfds.features.Text(doc="as JSON: looks and answer; empty if none is known")
IMAGES = tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_, doc="a file's content, as published"))


def encode(sample: Sample, images: list[bytes]) -> dict[str, Any]:
    """A sample as an example of `FEATURES`."""
    shown = sample.demonstration
    metadata = {**sample.metadata, **({"answers": sample.answers} if sample.answers else {})}
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
    """The sample again, its images decoded.

    Raises:
      ImageError: an image cannot be read.
    """
    text = {name: example[name].decode() for name in FEATURES}
    demonstration = None
    if text["demonstration"]:
        demonstration = Demonstration.from_json(json.loads(text["demonstration"]), text["answer"])
    metadata = json.loads(text["metadata"])
    answers = tuple(map(str, metadata.pop("answers", ())))
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
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _box(box: Box) -> tuple[Any, ...]:
    return (*box.xyxy, box.frame)


def _builder(dataset: DataSet, splits: Mapping[str, Iterable[Record]], writing: _Writing, data_dir: str) -> Any:
    """The builder of a data set; of all sets only the records differ."""

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
                disable_shuffling=True,  # in the order of the files; grain shuffles
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            return writing.examples(split, splits[split])

    return Builder(data_dir=data_dir, file_format="array_record")
