"""Pipelines: the same batches after a restart, and shares of a mixture as weighted."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep import phantom
from tests import micro
from vitar_jax.data.pipeline import sample_stream, sft_batches
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, DataError, VitarError
from vitar_jax.processing.packing import Batch, BatchShape
from vitar_jax.recipe import Recipe

LOOK = SourceConfig("phantom", options={"task": "look", "length": 40})
WHERE = SourceConfig("phantom", options={"task": "where", "length": 40}, protocol="plain", weight=3.0)


@pytest.fixture(scope="module")
def make_batches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], object]:
    """Builds the pipeline of demonstrations anew, with so many threads; without a batch size it fills rows."""
    recipe = Recipe.from_config(micro.get_config())
    processor = recipe.build_processor(tmp_path_factory.mktemp("processor"))
    shape = BatchShape(bins=2, rows=2, tokens=104, images=20, size_class=processor.size_classes[0], policy_tokens=400)

    def make(threads: int, batch_size: int | None = 4, tokens: int = 104) -> object:
        return sft_batches(
            [LOOK, WHERE],
            protocols=recipe.all_protocols(),
            default_protocol="vitar",
            processor=processor,
            limits=recipe.limits,
            shape=dataclasses.replace(shape, tokens=tokens),
            seed=1,
            batch_size=batch_size,
            threads=threads,
        )

    return make


def equal(batch: Batch, other: Batch) -> bool:
    return batch.keys() == other.keys() and all(np.array_equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("threads, after", [(0, 2), (2, 0)])
def test_a_restart_sees_what_it_would_have_seen(
    make_batches: Callable, threads: int, after: int, batch_size: int | None
) -> None:
    iterator = iter(make_batches(threads, batch_size))
    first = list(itertools.islice(iterator, 3))
    position = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint keeps it
    expected = list(itertools.islice(iterator, 3))
    assert not equal(first[0], expected[0])

    again = iter(make_batches(after, batch_size))
    again.set_state(position)
    assert all(equal(next(again), batch) for batch in expected)


def examples(batch: Batch) -> Iterator[list[int]]:
    """The tokens of each example of a batch, in the order of bins, rows and segments."""
    rows = (batch[name].reshape(-1, batch[name].shape[-1]) for name in ("token_ids", "segment_ids"))
    for tokens, segments in zip(*rows, strict=True):
        for segment in range(1, segments.max() + 1):
            yield tokens[segments == segment].tolist()


def test_filled_rows_have_every_example_once(make_batches: Callable) -> None:
    """The same ones as batches of one a row have, whole; each batch is as full as the next example allows."""
    one_each = (example for batch in make_batches(0) for example in examples(batch))
    filled = list(itertools.islice(make_batches(0, batch_size=None, tokens=150), 6))
    for batch, following in itertools.pairwise(filled):
        found = list(examples(batch))
        assert sorted(found) == sorted(itertools.islice(one_each, len(found)))
        free = (batch["segment_ids"] == 0).sum(axis=-1)
        assert free.max() < len(next(examples(following)))
        assert batch["segment_ids"].max() > 1


def test_an_example_that_no_batch_holds_is_named(make_batches: Callable) -> None:
    with pytest.raises(DataError, match="phantom-.* tokens .* do not fit"):
        next(iter(make_batches(0, batch_size=None, tokens=20)))


def ids(*sources: SourceConfig, seed: int, count: int) -> list[str]:
    stream = sample_stream(sources, seed=seed)
    return [stream[number].sample_id for number in range(count)]


def test_each_epoch_has_every_sample_in_another_order() -> None:
    seen = ids(LOOK, seed=0, count=80)
    epochs = seen[:40], seen[40:]
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 40
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    assert ids(LOOK, seed=0, count=40) == epochs[0] != ids(LOOK, seed=1, count=40)


def test_a_mixture_has_the_shares_of_its_weights() -> None:
    tasks = Counter(sample_id.split("-")[1] for sample_id in ids(LOOK, WHERE, seed=0, count=120))
    assert tasks == {"look": 30, "where": 90}


@pytest.mark.parametrize(
    "config, message",
    [
        (SourceConfig("phantoms"), "no data set 'phantoms'"),
        (SourceConfig("phantom", options={"task": "lok"}), "lok"),
        (SourceConfig("phantom", options={"tsk": "look"}), "tsk"),
        (SourceConfig("phantom", split="valid"), "valid"),
        (SourceConfig("vqa_rad", options={"directory": "nowhere"}), "nowhere"),
    ],
)
def test_a_wrong_source_is_named(config: SourceConfig, message: str) -> None:
    with pytest.raises(VitarError, match=message):
        load_source(config)
    if config.name == "phantoms":
        with pytest.raises(ConfigError):
            load_source(config)


def test_paths_outlive_a_move(tmp_path: Path) -> None:
    """A sample's number is the same with its data set's cache elsewhere."""
    load_source(LOOK)
    shutil.copytree(phantom.CACHE, tmp_path / "moved")
    here = SourceConfig("phantom", options={"task": "look", "length": 40, "cache_dir": str(tmp_path / "moved")})
    assert sample_stream([here], seed=3)[1].sample_id == sample_stream([LOOK], seed=3)[1].sample_id
