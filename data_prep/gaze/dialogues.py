"""Dialogues for supervised learning: a data set's samples, each with a search of its traces as its demonstration."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal, Protocol, SupportsIndex, runtime_checkable

from absl import logging

from vitar_jax.data.fingerprint import fingerprint
from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.data.traces import Traces
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError


@runtime_checkable
class Identified(Source, Protocol):
    """A source that knows the ids of its samples without decoding them."""

    def ids(self) -> list[str]: ...


@dataclass(frozen=True)
class Dialogues:
    """Random access to searches of a data set's samples. An item is a sample whose demonstration is one search."""

    samples: Source = field(repr=False)
    traces: Traces = field(repr=False)
    items: Sequence[tuple[int, int]] = field(repr=False)  # index of the sample, and number of the search among its traces
    name: str
    split: str

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> str:
        """Returns a hash of the samples' fingerprint, of the traces' files, and of the number of searches."""
        parts = [fingerprint(self.samples), self.traces.fingerprint(), str(len(self))]
        return sha256("\n".join(parts).encode()).hexdigest()

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Returns a sample with its search. Its id names the search too.

        Raises:
          DataError: If the traces are of another image.
          ImageError: If the image cannot be read.
        """
        number, place = self.items[operator.index(index)]
        sample = self.samples[number]
        trace = self.traces.check(sample)[place]
        name = f"{sample.sample_id}/search-{trace.search}"
        return replace(sample, sample_id=name, demonstration=trace.demonstration())


def source(
    split: str,
    *,
    traces: str | Sequence[str],
    searches: Literal["right", "all"] = "right",
    of: str = "data_prep.built:source",
    **options: Any,
) -> Dialogues:
    """Joins a data set with the traces of `python -m data_prep.gaze`. Logs how many samples have no search.

    Args:
      traces: Folders of traces, or their files.
      searches: "right" takes the searches with the right answer, "all" takes all.
      of: Data set of the samples, as in a recipe. `options` are its further arguments.

    Raises:
      ConfigError: If `searches` is unknown.
      DataError: If the traces cannot be read, or have no search of any sample.
    """
    if searches not in ("right", "all"):
        raise ConfigError(f"searches: got {searches!r}, expected right or all")
    opened = Traces([traces] if isinstance(traces, str) else list(traces))
    samples = load_source(SourceConfig(of, split, options))
    items: list[tuple[int, int]] = []
    missing = 0
    for number, sample_id in enumerate(sample_ids(samples)):
        found = [place for place, trace in enumerate(opened[sample_id]) if trace.right or searches == "all"]
        items += [(number, place) for place in found]
        missing += not found
    kind = "right searches" if searches == "right" else "searches"
    where = ", ".join(map(str, opened.paths))
    if not items:
        raise DataError(
            f"{where}: no {kind} of the {len(samples)} samples of {of}, split {split}; probably traces of another data set"
        )
    if missing:
        logging.warning("%s: no %s of %d of the %d samples of %s, split %s", where, kind, missing, len(samples), of, split)
    return Dialogues(samples, opened, items, of, split)


def sample_ids(samples: Source) -> Sequence[str]:
    """Returns the ids of all samples, without decoding images if the source knows them."""
    if isinstance(samples, Identified):
        return samples.ids()
    return [samples[number].sample_id for number in range(len(samples))]
