"""Reads data sets that `python -m data_prep.build` has built: the source `data_prep.built:source` of recipes."""

import hashlib
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds

from data_prep.building.store import decode
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.sources import file_digest


@dataclass(frozen=True)
class Built:
    """Random access to the samples of a split. Images are decoded when a sample is accessed."""

    records: Any = field(repr=False)  # the TFDS data source; not in the repr, which grain checkpoints
    folder: Path = field(repr=False)
    name: str
    version: str
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> str:
        """Returns a hash of the card, which covers all images and tables, and of the size and the ends of each file."""
        files = sorted(self.folder.glob(f"*-{self.split}.*"))
        parts = [(self.folder / "card.json").read_text(), *(f"{path.name} {file_digest(path)}" for path in files)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def ids(self) -> list[str]:
        """Returns the ids of all samples, without decoding images."""
        return [self.records[number]["sample_id"].decode() for number in range(len(self))]

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Decodes a sample.

        Raises:
          ImageError: If an image cannot be read.
        """
        number = operator.index(index)
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} is out of range for a source of {len(self)} samples")
        return decode(self.records[number])


def source(split: str, *, set: str, data_dir: str, language: str = "", version: str = "") -> Built:
    """Opens a split of a built set.

    Args:
      set: Name of the set.
      data_dir: Folder of built sets.
      language: For sets with splits by language: "test" and "en" name the split `test_en`.
      version: Version of the set (default: the newest).

    Raises:
      ConfigError: If the split does not exist.
      DataError: If the set has not been built in `data_dir`.
    """
    folder = Path(data_dir) / set
    versions = sorted((path.parent for path in folder.glob("*/card.json")), key=lambda path: tfds.core.Version(path.name))
    chosen = [path for path in versions if path.name == version] if version else versions[-1:]
    if not chosen:
        there = f"; available versions are {', '.join(path.name for path in versions)}" if versions else ""
        raise DataError(f"{folder / version}: no built set found; build it with `python -m data_prep.build {set}`{there}")
    builder: Any = tfds.builder_from_directory(str(chosen[0]))
    name = f"{split}_{language}" if language else split
    if name not in builder.info.splits:
        raise ConfigError(f"{set} has no split {name!r}; it has {', '.join(builder.info.splits)}")
    return Built(builder.as_data_source(name), chosen[0], set, chosen[0].name, name)
