"""Pipelines: the same batches after a restart, and shares of a mixture as weighted."""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep import phantom
from tests import micro
from vitar_jax.data.pipeline import sample_stream, sft_batches
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, VitarError
from vitar_jax.processing.packing import Batch, BatchShape
from vitar_jax.recipe import Recipe

LOOK = SourceConfig("phantom", options={"task": "look", "length": 40})
WHERE = SourceConfig("phantom", options={"task": "where", "length": 40}, protocol="plain", weight=3.0)


@pytest.fixture(scope="module")
def make_batches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], object]:
    """Builds the pipeline of demonstrations anew, with so many threads."""
    recipe = Recipe.from_config(micro.get_config())
    processor = recipe.build_processor(tmp_path_factory.mktemp("processor"))
    shape = BatchShape(bins=2, rows=2, tokens=104, images=4, size_class=processor.size_classes[0], policy_tokens=120)

    def make(threads: int) -> object:
        return sft_batches(
            [LOOK, WHERE],
            protocols=recipe.all_protocols(),
            default_protocol="vitar",
            processor=processor,
            limits=recipe.limits,
            shape=shape,
            seed=1,
            batch_size=4,
            threads=threads,
        )

    return make


def equal(batch: Batch, other: Batch) -> bool:
    return batch.keys() == other.keys() and all(np.array_equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize("threads, after", [(0, 2), (2, 0)])
def test_a_restart_sees_what_it_would_have_seen(make_batches: Callable, threads: int, after: int) -> None:
    iterator = iter(make_batches(threads))
    first = list(itertools.islice(iterator, 3))
    position = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint keeps it
    expected = list(itertools.islice(iterator, 3))
    assert not equal(first[0], expected[0])

    again = iter(make_batches(after))
    again.set_state(position)
    assert all(equal(next(again), batch) for batch in expected)


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
