"""Pipelines: the same batches after a restart, and shares of a mixture as weighted."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_prep.phantom import samples as phantom
from tests.kit import micro
from vitar_jax.data.pipeline import Share, sample_stream, sft_batches
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, DataError, TooLongError, VitarError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.sft import SFTBatches
from vitar_jax.processing.packing import Batch, BatchShape

LOOK = SourceConfig("data_prep.phantom:source", options={"task": "look", "length": 40})
WHERE = SourceConfig("data_prep.phantom:source", options={"task": "where", "length": 40}, protocol="plain", weight=3.0)


@pytest.fixture(scope="module")
def make_batches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], object]:
    """Builds the pipeline of demonstrations anew, with so many threads; without a batch size it fills rows.

    Those of LOOK have 82 to 84 tokens and two images, those of WHERE 35 or 36 and one.
    """
    recipe = Recipe.from_config(micro.get_config())
    processor = build.processor(recipe, tmp_path_factory.mktemp("processor"))
    shape = BatchShape(bins=2, rows=2, tokens=104, images=20, size_class=processor.size_classes[0], policy_tokens=400)

    def make(
        threads: int,
        batch_size: int | None = 4,
        *,
        weights: tuple[float, float] = (1.0, 3.0),
        limits: dict[str, int] | None = None,
        **changes: Any,
    ) -> object:
        how = {name: changes.pop(name) for name in ("too_long", "share") if name in changes}
        return sft_batches(
            [dataclasses.replace(source, weight=weight) for source, weight in zip((LOOK, WHERE), weights, strict=True)],
            protocols=recipe.all_protocols,
            default_protocol="vitar",
            processor=processor,
            limits=dataclasses.replace(recipe.limits, **limits or {}),
            shape=dataclasses.replace(shape, **changes),
            seed=1,
            batch_size=batch_size,
            threads=threads,
            **how,
        )

    return make


def equal(batch: Batch, other: Batch) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, batch, other))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("threads, after", [(0, 2), (2, 0), (4, 1)])
@pytest.mark.parametrize("how", [{}, {"too_long": "skip", "tokens": 83}], ids=["all", "skip"])
def test_a_restart_sees_what_it_would_have_seen(
    make_batches: Callable, threads: int, after: int, how: dict[str, Any], batch_size: int | None
) -> None:
    iterator = iter(make_batches(threads, batch_size, **how))
    first = list(itertools.islice(iterator, 6))
    position = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint keeps it
    expected = list(itertools.islice(iterator, 6))
    assert not equal(first[0], expected[0])

    again = iter(make_batches(after, batch_size, **how))
    again.set_state(position)
    assert all(equal(next(again), batch) for batch in expected)
    assert again.get_state() == iterator.get_state()
    assert (iterator.get_state()["skipped"] > position["skipped"] > 0) == bool(how)


def examples(batch: Batch) -> Iterator[list[int]]:
    """The tokens of each example of a batch, in the order of bins, rows and segments."""
    rows = (array.reshape(-1, array.shape[-1]) for array in (batch.token_ids, batch.segment_ids))
    for tokens, segments in zip(*rows, strict=True):
        for segment in range(1, segments.max() + 1):
            yield tokens[segments == segment].tolist()


def test_filled_rows_have_every_example_once(make_batches: Callable) -> None:
    """The same ones as batches of a single row have, whole; each batch is as full as the next example allows."""
    one_each = (example for batch in make_batches(0, None, bins=1, rows=1) for example in examples(batch))
    filled = list(itertools.islice(make_batches(0, batch_size=None, tokens=150), 6))
    for batch, following in itertools.pairwise(filled):
        found = list(examples(batch))
        assert sorted(found) == sorted(itertools.islice(one_each, len(found)))
        free = (batch.segment_ids == 0).sum(axis=-1)
        assert free.max() < len(next(examples(following)))
        assert batch.segment_ids.max() > 1


def test_an_example_that_no_batch_holds_is_named(make_batches: Callable) -> None:
    with pytest.raises(TooLongError, match="phantom-.* tokens .* do not fit"):
        next(iter(make_batches(0, batch_size=None, tokens=20, too_long="error")))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, None])
@pytest.mark.parametrize(
    "how, fits",
    [
        ({"tokens": 83}, lambda length: length <= 83),  # of a row
        ({"images": 1}, lambda length: length <= 36),  # of a bin
        ({"policy_tokens": 15}, lambda length: length <= 36),  # to learn in a bin
        ({"limits": {"images": 1}}, lambda length: length <= 36),  # of an episode
        ({"limits": {"tokens": 30}}, lambda length: length <= 36),  # of an episode, in its prompt
        ({"limits": {"tokens": 60}}, lambda length: length <= 36),  # of an episode, in its observation
    ],
)
def test_what_is_too_long_is_an_error_or_skipped_and_counted(
    make_batches: Callable, how: dict[str, Any], fits: Callable[[int], bool], batch_size: int | None
) -> None:
    """Skipping leaves the examples that fit, in their order; the position counts all that were read."""
    one_row = make_batches(0, batch_size and 1, bins=1, rows=1)  # which keeps their order
    every = [example for batch in itertools.islice(one_row, 100) for example in examples(batch)]
    with pytest.raises(TooLongError, match="phantom-"):
        list(itertools.islice(make_batches(0, batch_size, too_long="error", **how), 30))

    batches: Any = SFTBatches(make_batches(0, batch_size, **how))
    read = 0
    for _ in range(4):
        batch, scalars = batches.next(None)
        state, before = batches.get_state(), read
        read = state["next_index"]
        assert sorted(examples(batch)) == sorted(tokens for tokens in every[before:read] if fits(len(tokens)))
        assert scalars["data/skipped"] == state["skipped"] == sum(not fits(len(tokens)) for tokens in every[:read])
        assert scalars["data/skipped/too_long"] == state["skipped"] and not scalars["data/short_batches"]
    assert state["skipped"] > 0


def test_a_batch_without_room_for_all_its_examples_has_fewer_and_loses_none(make_batches: Callable) -> None:
    """Its shape is an average that the examples of one batch exceed. What is read after a restart is the same."""
    single = make_batches(0, 1, weights=(3.0, 2.0), bins=1, rows=1)  # which keeps their order
    every = [example for batch in itertools.islice(single, 40) for example in examples(batch)]
    batches: Any = SFTBatches(make_batches(0, 4, weights=(3.0, 2.0), images=3))
    found, sizes, states = [], [], []
    for _ in range(10):
        batch, scalars = batches.next(None)
        sizes.append(len(list(examples(batch))))
        assert sorted(every[len(found) : len(found) + sizes[-1]]) == sorted(examples(batch))
        found += examples(batch)
        assert scalars["data/short_batches"] == sum(size < 4 for size in sizes) and not scalars["data/skipped"]
        states.append(batches.get_state())
    assert min(sizes) < 4 and max(sizes) == 4
    for number in range(9):
        again = iter(make_batches(2, 4, weights=(3.0, 2.0), images=3))
        again.set_state(json.loads(json.dumps(states[number])))
        assert len(list(examples(next(again)))) == sizes[number + 1]
        assert again.get_state() == states[number + 1]


@pytest.mark.slow
def test_each_process_fills_its_rows_from_the_whole_mixture(make_batches: Callable) -> None:
    """Otherwise one of two would read all of LOOK, whose examples are longer, and read fewer than its weight says."""
    for index in range(2):
        filled = itertools.islice(make_batches(0, batch_size=None, weights=(1.0, 1.0), share=Share(index, 2)), 25)
        looks = [len(example) > 36 for batch in filled for example in examples(batch)]
        assert len(looks) > 100 and np.mean(looks) == pytest.approx(0.5, abs=0.1)


def test_limits_that_fit_nothing_are_said(make_batches: Callable) -> None:
    with pytest.raises(DataError, match="51 of 51 consecutive records were skipped.*max_skipped_share=0.5.*tokens=20"):
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
        (SourceConfig("phantoms"), "unknown data set 'phantoms'"),
        (SourceConfig("data_prep.phantom:source", options={"task": "lok"}), "lok"),
        (SourceConfig("data_prep.phantom:source", options={"tsk": "look"}), "tsk"),
        (SourceConfig("data_prep.phantom:source", split="valid"), "valid"),
        (SourceConfig("data_prep.sets.vqa_rad:source", options={"directory": "nowhere"}), "nowhere"),
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
    here = SourceConfig(
        "data_prep.phantom:source", options={"task": "look", "length": 40, "cache_dir": str(tmp_path / "moved")}
    )
    assert sample_stream([here], seed=3)[1].sample_id == sample_stream([LOOK], seed=3)[1].sample_id
