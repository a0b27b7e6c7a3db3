"""grain pipelines: shuffled, mixed, endless, and resumable at the exact record."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError
from vitar_jax.processing.packing import Batch, BatchShape, Example, Packer, does_not_fit, pack
from vitar_jax.processing.processor import Processor


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the records that one process reads. All parts of a batch of so many records are together the batch that a
    process alone would read; where rows are filled, each process fills its own."""

    index: int = 0
    count: int = 1

    def of(self, dataset: Any) -> Any:
        """The records of a shuffled, endless dataset that are this process's."""
        return dataset[self.index :: self.count]

    def size(self, batch_size: int) -> int:
        """How many records of a batch are this process's."""
        if batch_size % self.count:
            raise ConfigError(f"batch_size {batch_size} is not a multiple of the {self.count} processes")
        return batch_size // self.count


def sample_stream(sources: Sequence[SourceConfig], *, seed: int, share: Share = Share()) -> Source:
    """Endless samples by their number, for rollouts."""
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
    share: Share = Share(),
) -> grain.IterDataset[Batch]:
    """Endless device batches of demonstrated episodes, whose position is the number of examples that this process has read.

    Args:
      shape: that of one share.
      batch_size: examples of all shares; None: as many as fit, up to the first that does not.
    """

    def show(protocol: Protocol) -> Callable[[Sample], Example]:
        return lambda sample: demonstrate(sample, protocol, processor, limits).example()

    datasets = [
        _shuffled(load_source(source), seed + i).map(show(protocols[source.protocol or default_protocol]))
        for i, source in enumerate(sources)
    ]
    count = None if batch_size is None else share.size(batch_size)
    ahead = 2 * (count or shape.bins * shape.rows)
    examples = share.of(_mix(datasets, sources)).to_iter_dataset(grain.ReadOptions(threads, ahead if threads else 0))
    batches = _Batches(examples, shape, processor, count)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2) if threads else batches


class _Batches(grain.IterDataset[Batch]):
    """Examples to batches; see `sft_batches`."""

    def __init__(self, examples: grain.IterDataset[Example], shape: BatchShape, processor: Processor, count: int | None):
        super().__init__(examples)
        self._how = shape, processor, count

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self._parent.__iter__(), *self._how)


class _BatchIterator(grain.DatasetIterator[Batch]):
    def __init__(self, examples: Any, shape: BatchShape, processor: Processor, count: int | None):
        super().__init__(examples)
        self._shape, self._processor, self._count = shape, processor, count
        self._left: tuple[dict[str, int], Example] | None = None  # the first example of the next batch, and its position

    def __next__(self) -> Batch:
        if self._count is not None:
            return pack([next(self._parent) for _ in range(self._count)], self._shape, self._processor)
        packer = Packer(self._shape, self._processor)
        first = self._left[1] if self._left else next(self._parent)
        if not packer.add(first):
            raise does_not_fit(first, self._shape)
        while True:
            self._left = self._parent.get_state(), next(self._parent)
            if not packer.add(self._left[1]):
                return packer.batch()

    def get_state(self) -> dict[str, int]:
        return self._left[0] if self._left else self._parent.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        self._left = None
        self._parent.set_state(state)


def _shuffled(source: Source, seed: int) -> Any:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _mix(datasets: list[Any], sources: Sequence[SourceConfig]) -> Any:
    if len(datasets) == 1:
        return datasets[0]
    weights = np.array([source.weight for source in sources])
    return grain.MapDataset.mix(datasets, weights=(weights / weights.sum()).tolist())
