"""The record that every data set is read into, and what is known of a data set before it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.reading.published import ImageFile
from vitar_jax.data.tables import Row
from vitar_jax.episodes.sample import Sample, letters


@dataclass(frozen=True)
class Record:
    """A question as it was published.

    Attributes:
      sample: without its images; metadata are what JSON can hold.
      images: in the order of the question.
      where: the file and record that it comes from, for errors.
      patient: whose images these are, where that is known. It is compared and never written.
    """

    sample: Sample
    images: tuple[ImageFile, ...]
    where: str
    patient: str = ""


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before it is read.

    Attributes:
      name: of its module and of what is built.
      layout: which files `--source` holds.
      version: of what is built; raised whenever that changes.
      counts: published number of questions by split.
      hub_files: patterns of the files that are needed from a hub repository; none: all.
      notes: traps that are known.
    """

    name: str
    title: str
    url: str
    licence: str
    citation: str
    layout: str
    version: str = "1.0.0"
    counts: Mapping[str, int] = field(default_factory=dict)
    hub_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def chosen(row: Row, options: Sequence[str], key: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Options with their letters, and the letter of the one that `key` has the text of; without options, the text.

    Raises:
      DataError: it is none of the options.
    """
    pairs = letters(options, f"{row.where}: options")
    if not pairs:
        return (), row.text(key)
    right = [letter for letter, option in pairs if option == row.text(key)]
    if not right:
        raise row.wrong(key, f"one of the options {', '.join(options)}")
    return pairs, right[0]
