"""Grain pipelines: shuffled, mixed, endless, and resumable at the exact record."""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, SupportsIndex

import grain
import numpy as np
from absl import logging

from vitar_jax.data.skipping import MAX_SHARE, Skipped, Skips, attempt
from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError
from vitar_jax.processing.mask_targets import ExampleMasks
from vitar_jax.processing.packing import Batch, BatchShape, Example, Packer, check_fits
from vitar_jax.processing.processor import Processor

_WINDOW = 128  # window, in examples, within which the order of a mixture is shuffled


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
    return share.of(_mix([_shuffled(_Named(source), seed + i) for i, source in enumerate(sources)], sources))


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
    too_long: Literal["error", "skip"] = "skip",
    max_skipped_share: float = MAX_SHARE,
    share: Share = Share(),
    masks: Callable[[Episode, np.random.Generator], ExampleMasks | None] | None = None,
) -> grain.IterDataset[Batch]:
    """Returns endless device batches of demonstrated episodes.

    Records that cannot be used are skipped, counted and named in the log (`data/skipping.py`). The state of the iterator holds
    the number of records that this process has read, the state of its `Skips`, and the number of `short_batches`.

    Args:
      protocols: Protocols by name, for sources that name one.
      default_protocol: Name of the protocol of the other sources.
      shape: Shape of one shard of a batch.
      batch_size: Number of examples in all shards of a batch. If None, packs examples until the next one does not fit. A batch
        whose shape has no room for all of its examples has fewer, and the next batch begins with the one that did not fit.
      threads: Number of threads that read ahead. 0 reads in the calling thread.
      too_long: Treatment of an example that exceeds the limits or fits no batch.
      max_skipped_share: See `Skips`.
      masks: Returns what an episode learns of masks; its random numbers follow from the seed and the position in the data. If
        None, no masks are learnt.

    Raises (when iterated):
      TooLongError: If an example is too long and `too_long` is "error". The message names the example.
      DataError: If too many records are skipped.
    """

    def show(source: Source, protocol: Protocol) -> Callable[[int, np.random.Generator], Example | Skipped]:
        def example(index: int, rng: np.random.Generator) -> Example:
            episode = demonstrate(source[index], protocol, processor, limits)
            shown = episode.example()
            if masks is not None:
                shown = dataclasses.replace(shown, masks=masks(episode, rng))
            check_fits(shown, shape)
            return shown

        def read(index: int, rng: np.random.Generator) -> Example | Skipped:
            made = attempt(lambda: example(index, rng))
            if isinstance(made, Skipped) and made.kind == "too_long" and too_long == "error":
                raise made.error()
            return made

        return read

    named = [_Named(source) for source in sources]
    # The samples are read in `show`, where an error skips one record.
    datasets = [
        _shuffled(range(len(source)), seed + i).random_map(show(source, protocols[config.protocol or default_protocol]))
        for i, (source, config) in enumerate(zip(named, sources, strict=True))
    ]
    count = None if batch_size is None else share.size(batch_size)
    ahead = 2 * (count or shape.bins * shape.rows)
    options = grain.ReadOptions(threads, ahead if threads else 0)
    mixture = _mix(datasets, sources)
    if count is None and len(sources) > 1:
        # The mixture interleaves its sources regularly, so one shard could get all of one source. If that source had long
        # examples, packing would read fewer of them than its weight says.
        mixture = grain.experimental.WindowShuffleMapDataset(mixture, window_size=_WINDOW, seed=seed)
    examples = share.of(mixture).to_iter_dataset(options)
    batches = _Batches(examples, shape, processor, count, max_skipped_share)
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2) if threads else batches


class _Batches(grain.IterDataset[Batch]):
    """A dataset of batches, packed from examples; see `sft_batches`."""

    def __init__(self, examples: grain.IterDataset[Example | Skipped], *how: Any):
        super().__init__(examples)
        self._how = how

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self._parent.__iter__(), *self._how)


class _BatchIterator(grain.DatasetIterator[Batch]):
    def __init__(self, examples: Any, shape: BatchShape, processor: Processor, count: int | None, max_skipped_share: float):
        super().__init__(examples)
        self._shape, self._processor, self._count = shape, processor, count
        self._skips = Skips(max_skipped_share)
        self._short = 0
        self._left: tuple[dict[str, int], Example] | None = None  # first example of the next batch, and the state before it

    def __next__(self) -> Batch:
        packer = Packer(self._shape, self._processor)
        for number in itertools.count():
            if number == self._count:
                break
            if self._left is None:
                self._left = self._read(), self._example()
            if not packer.add(self._left[1], home=number * self._shape.bins // self._count if self._count else 0):
                self._close_early(number)
                break
            self._left = None
        return packer.batch()

    def _example(self) -> Example:
        """Returns the next example that is not skipped."""
        while (example := self._skips.accept(next(self._parent))) is None:
            pass
        return example

    def _close_early(self, number: int) -> None:
        """Counts a batch of a fixed size that has room for only `number` examples."""
        if self._count is not None:
            self._short += 1
            message = "a batch of %s has room for %d of its %d examples; raise row_images, policy_tokens or tokens of the stage"
            logging.log_first_n(logging.WARNING, message, 20, self._shape, number, self._count)

    def _read(self) -> dict[str, int]:
        return self._parent.get_state() | self._skips.get_state()

    def get_state(self) -> dict[str, int]:
        return (self._left[0] if self._left else self._read()) | {"short_batches": self._short}

    def set_state(self, state: dict[str, int]) -> None:
        self._left, self._short = None, state.get("short_batches", 0)
        self._skips.set_state(state)
        self._parent.set_state(state)


class _Named:
    """A source whose errors name the data set and the record."""

    def __init__(self, config: SourceConfig):
        self._source, self._name = load_source(config), config.name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        sample = attempt(lambda: self._source[index])
        if isinstance(sample, Skipped):
            raise sample.error(f"{self._name}: record {operator.index(index)}")
        return sample


def _shuffled(source: Any, seed: int) -> Any:
    return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _mix(datasets: list[Any], sources: Sequence[SourceConfig]) -> Any:
    if len(datasets) == 1:
        return datasets[0]
    weights = np.array([source.weight for source in sources])
    return grain.MapDataset.mix(datasets, weights=(weights / weights.sum()).tolist())
