"""Data sets that `python -m data_prep.build` has built, as recipes read them."""

import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import tensorflow_datasets as tfds

from data_prep.building.store import decode
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError


@dataclass(frozen=True)
class Built:
    """A split as random access to samples. A sample's images are decoded when it is asked for."""

    records: Any = field(repr=False)  # the data source of TFDS; grain checkpoints a source's repr
    name: str
    version: str
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """
        Raises:
          ImageError: an image cannot be read.
        """
        number = operator.index(index)
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of a source of {len(self)}")
        return decode(self.records[number])


def source(split: str, *, set: str, data_dir: str, language: str = "", version: str = "") -> Built:
    """A built set as recipes name it.

    Args:
      set: its name.
      data_dir: the folder it was built into.
      language: of its questions, where it has splits by language: "test" and "en" are `test_en`.
      version: empty: the newest that is there.

    Raises:
      ConfigError: the set has no such split.
      DataError: it is not built there.
    """
    folder = Path(data_dir) / set
    versions = sorted((path.parent for path in folder.glob("*/card.json")), key=lambda path: tfds.core.Version(path.name))
    chosen = [path for path in versions if path.name == version] if version else versions[-1:]
    if not chosen:
        there = f"; versions there are {', '.join(path.name for path in versions)}" if versions else ""
        raise DataError(f"{folder / version}: holds no built set; `python -m data_prep.build {set}` makes one{there}")
    builder: Any = tfds.builder_from_directory(str(chosen[0]))
    name = f"{split}_{language}" if language else split
    if name not in builder.info.splits:
        raise ConfigError(f"{set} has no split {name!r}; it has {', '.join(builder.info.splits)}")
    return Built(builder.as_data_source(name), set, chosen[0].name, name)
