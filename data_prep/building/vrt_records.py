"""What VRT's training set and its benchmark have in common: TFRecords with an image and objects as run lengths."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.building.records import Record
from data_prep.reading.published import ImageFile, Published
from data_prep.reading.tfrecord import Features, read_examples
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image


@dataclass(frozen=True)
class VRTRecord:
    """A record of a TFRecord file. Its methods raise DataError, which names the file, the record and the feature."""

    features: Features
    where: str

    @property
    def key(self) -> str:
        return self.text("key")

    @property
    def image(self) -> ImageFile:
        content = self._one("image", bytes)
        return ImageFile(f"{self.key}.jpg", lambda: content)

    def text(self, name: str) -> str:
        try:
            return self._one(name, bytes).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where}: {name}: is not UTF-8 ({error})") from error

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where}: {name}: is not JSON ({error})") from error

    def mask(self, value: Any, name: str) -> Mask:
        """Returns the mask of an object: run lengths, or a list of run lengths whose union counts.

        Raises:
          DataError: If the run lengths are malformed or do not fit the image.
        """
        try:
            parts = [Mask.from_coco(part) for part in (value if isinstance(value, list) else [value])]
            if not parts:
                raise ValueError("got an empty list of run lengths")
            width, height = open_image(self.image.read()).size
            if wrong := [part.shape for part in parts if part.shape != (height, width)]:
                raise ValueError(f"got run lengths for {wrong[0]}, expected the image's (height, width), {(height, width)}")
        except (ValueError, ImageError) as error:
            raise DataError(f"{self.where}: {name}: {error}") from error
        return parts[0] if len(parts) == 1 else Mask.of(np.any([part.array for part in parts], axis=0), "original")

    def _one(self, name: str, kind: type) -> Any:
        values = self.features.get(name, [])
        if len(values) != 1 or not isinstance(values[0], kind):
            raise DataError(f"{self.where}: {name}: got {len(values)} values, expected one of type {kind.__name__}")
        return values[0]


def read_records(
    published: Published, needed: str, other: Mapping[str, str], sample: Callable[[VRTRecord], Sample]
) -> Iterator[Record]:
    """Yields the records of all TFRecord files of a set.

    Args:
      needed: A feature that all records of the set have.
      other: Features that only other sets have, and the names of these sets.
      sample: Makes the sample of a record. Raises DataError if the record is malformed.
    """

    def make(found: tuple[str, Features | DataError]) -> Record:
        where, features = found
        if isinstance(features, DataError):
            raise features
        if needed not in features:
            set_name = next((name for feature, name in other.items() if feature in features), "")
            hint = f"; it is a record of {set_name}" if set_name else ""
            raise DataError(f"{where}: {needed}: is missing; got {', '.join(features) or 'no features'}{hint}")
        record = VRTRecord(features, where)
        return Record(sample(record), (record.image,), where)

    files = published.files("*.tfrecord")
    return published.records((found for file in files for found in read_examples(file)), make)
