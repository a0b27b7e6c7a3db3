"""Grain pipelines: shuffled, mixed, endless, and resumable at the exact record."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import logging

from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, TooLongError
from vitar_jax.processing.packing import Batch, BatchShape, Example, Packer, check_fits, pack
from vitar_jax.processing.processor import Processor

_WINDOW = 128  # window, in examples, within which the order of a mixture is shuffled
_MOST_SKIPPED = 1000  # consecutive examples; more than this means that the limits are wrong


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's shard of the records.

    With a fixed batch size, the shards of a batch together equal the batch of a single-process run. When rows are packed, each
    process packs its own rows.

    Attributes:
      index: Index of the process.
      count: Number of processes.
    """

    index: int = 0
    count: int = 1

    def of(self, dataset: Any) -> Any:
        """Returns this process's records of a shuffled, endless dataset."""
        return dataset[self.index :: self.count]

    def size(self, batch_size: int) -> int:
        """Returns the number of records of a batch that this process reads.

        Raises:
          ConfigError: If the batch size is not a multiple of the number of processes.
        """
        if batch_size % self.count:
            raise ConfigError(f"batch_size: got {batch_size}, expected a multiple of the {self.count} processes")
        return batch_size // self.count


def sample_stream(sources: Sequence[SourceConfig], *, seed: int, share: Share = Share()) -> Source:
    """Returns an endless, shuffled sequence of samples, by index, for rollouts."""
    return share.of(_mix([_shuffled(load_source(source), seed + i) for i, source in enumerate(sources)], sources))


def sft_batches(
    sources: Sequence[SourceConfig],
    *,
    protocols: Mapping[str, Protocol],
    default_protocol: str,
    processor: Processor,
    limits: Limits,
    shape: BatchShape,
    seed: int,
    batch_size: int | None,
    threads: int = 2,
    too_long: Literal["error", "skip"] = "error",
    share: Share = Share(),
) -> grain.IterDataset[Batch]:
    """Returns endless device batches of demonstrated episodes.

    The state of the iterator holds the number of examples that this process has read, and how many of these it `skipped`.

    Args:
      protocols: Protocols by name, for sources that name one.
      default_protocol: Name of the protocol of the other sources.
      shape: Shape of one shard of a batch.
      batch_size: Number of examples in all shards of a batch. If None, packs examples until the next one does not fit.
      threads: Number of threads that read ahead. 0 reads in the calling thread.
      too_long: Treatment of an example that exceeds the limits or fits no batch. "skip" logs each skipped example.

    Raises (when iterated):
      TooLongError: If an example is too long or, given a `batch_size`, does not fit into the rest of its batch. The message
        names the example.
    """

    def show(protocol: Protocol) -> Callable[[Sample], Example | None]:
        def example(sample: Sample) -> Example | None:
            try:
                shown = demonstrate(sample, protocol, processor, limits).example()
                check_fits(shown, shape, processor)
            except TooLongError as error:
                if too_long == "error":
                    raise
                logging.warning("skipped an example that is too long: %s", error)
                return None
            return shown

        return example

    datasets = [
        _shuffled(load_source(source), seed + i).map(show(protocols[source.protocol or default_protocol]))
        for i, source in enumerate(sources)
    ]
    count = None if batch_size is None else share.size(batch_size)
    ahead = 2 * (count or shape.bins * shape.rows)
    options = grain.ReadOptions(threads, ahead if threads else 0)
    mixture = _mix(datasets, sources)
    if count is None and len(sources) > 1:
        # The mixture interleaves its sources regularly, so one shard could get all of one source. If that source had long
        # examples, packing would read fewer of them than its weight says.
        mixture = grain.experimental.WindowShuffleMapDataset(mixture, window_size=_WINDOW, seed=seed)
    examples = share.of(mixture).to_iter_dataset(options, allow_nones=True)
    batches = _Batches(examples, shape, processor, count)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2) if threads else batches


class _Batches(grain.IterDataset[Batch]):
    """A dataset of batches, packed from examples; see `sft_batches`."""

    def __init__(self, examples: grain.IterDataset[Example | None], shape: BatchShape, processor: Processor, count: int | None):
        super().__init__(examples)
        self._how = shape, processor, count

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self._parent.__iter__(), *self._how)


class _BatchIterator(grain.DatasetIterator[Batch]):
    def __init__(self, examples: Any, shape: BatchShape, processor: Processor, count: int | None):
        super().__init__(examples)
        self._shape, self._processor, self._count = shape, processor, count
        self._skipped = 0
        self._left: tuple[dict[str, int], Example] | None = None  # first example of the next batch, and the state before it

    def __next__(self) -> Batch:
        if self._count is not None:
            return pack([self._example() for _ in range(self._count)], self._shape, self._processor)
        packer = Packer(self._shape, self._processor)
        packer.add(self._left[1] if self._left else self._example())
        while True:
            self._left = self._read(), self._example()
            if not packer.add(self._left[1]):
                return packer.batch()

    def _example(self) -> Example:
        """Returns the next example that is not too long."""
        for _ in range(_MOST_SKIPPED):
            if (example := next(self._parent)) is not None:
                return example
            self._skipped += 1
        raise TooLongError(f"{_MOST_SKIPPED} consecutive examples are too long for a batch of {self._shape}; raise the limits")

    def _read(self) -> dict[str, int]:
        return self._parent.get_state() | {"skipped": self._skipped}

    def get_state(self) -> dict[str, int]:
        return self._left[0] if self._left else self._read()

    def set_state(self, state: dict[str, int]) -> None:
        self._left, self._skipped = None, state["skipped"]
        self._parent.set_state(state)


def _shuffled(source: Source, seed: int) -> Any:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _mix(datasets: list[Any], sources: Sequence[SourceConfig]) -> Any:
    if len(datasets) == 1:
        return datasets[0]
    weights = np.array([source.weight for source in sources])
    return grain.MapDataset.mix(datasets, weights=(weights / weights.sum()).tolist())
