"""`Record`, the common form of all data sets, and `DataSet`, the description of a published set."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from data_prep.reading.published import ImageFile
from vitar_jax.episodes.sample import Sample


@dataclass(frozen=True)
class Record:
    """One published question.

    Attributes:
      sample: The sample without images. Its metadata must be JSON values.
      images: The images, in the order in which the question refers to them.
      where: File and record number, for error messages.
      patient: Patient that the images show, if known. Used to find leaks between splits; never written.
    """

    sample: Sample
    images: tuple[ImageFile, ...]
    where: str
    patient: str = ""


@dataclass(frozen=True)
class DataSet:
    """The description of a published data set.

    Attributes:
      name: Name of the set's module and of the built set.
      layout: The files that `--source` must hold.
      version: Version of the built set. Raise it whenever the built records change.
      counts: Published number of questions, by split.
      hub_files: Patterns of the files to download from a hub repository. If empty, all files are downloaded.
      notes: Known pitfalls.
      skip_bad: Whether the build always leaves out invalid records. It names and counts them.
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
    skip_bad: bool = False
