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
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack
from vitar_jax.processing.processor import Processor


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of every batch that one process reads; all parts together are the batch that a process alone would read."""

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
    batch_size: int,
    threads: int = 2,
    share: Share = Share(),
) -> grain.IterDataset[Batch]:
    """Endless device batches of demonstrated episodes; `shape` is that of one share."""

    def show(protocol: Protocol) -> Callable[[Sample], Example]:
        return lambda sample: demonstrate(sample, protocol, processor, limits).example()

    datasets = [
        _shuffled(load_source(source), seed + i).map(show(protocols[source.protocol or default_protocol]))
        for i, source in enumerate(sources)
    ]
    mixed = _mix(datasets, sources)
    batches = share.of(mixed).batch(share.size(batch_size), batch_fn=lambda examples: pack(examples, shape, processor))
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))


def _shuffled(source: Source, seed: int) -> Any:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _mix(datasets: list[Any], sources: Sequence[SourceConfig]) -> Any:
    if len(datasets) == 1:
        return datasets[0]
    weights = np.array([source.weight for source in sources])
    return grain.MapDataset.mix(datasets, weights=(weights / weights.sum()).tolist())
