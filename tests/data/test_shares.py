"""What processes read of a mixture: together all of it, as one alone would, by its weights."""

import itertools
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitar_jax.data import pipeline
from vitar_jax.data.pipeline import Share, sample_stream
from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes.sample import Sample


@pytest.fixture(autouse=True, scope="module")
def numbered() -> Iterator[None]:
    """Sources of nothing but numbers."""
    with pytest.MonkeyPatch.context() as patch:
        samples = lambda source: [Sample(f"{source.name} {i}", "", (), "") for i in range(source.options["length"])]  # noqa: E731
        patch.setattr(pipeline, "load_source", samples)
        yield


def source(name: str, length: int, weight: float = 1.0) -> SourceConfig:
    return SourceConfig(name, options={"length": length}, weight=weight)


def read(sources: list[SourceConfig], seed: int, share: Share, count: int) -> list[str]:
    stream = sample_stream(sources, seed=seed, share=share)
    return [stream[number].sample_id for number in range(count)]


lengths, counts, seeds = st.integers(1, 40), st.integers(1, 5), st.integers(0, 99)
few = settings(max_examples=15)


@pytest.mark.slow
@few
@given(lengths, counts, seeds)
def test_shares_of_an_epoch_are_disjoint_and_together_complete(length: int, count: int, seed: int) -> None:
    shares = [read([source("a", length)], seed, Share(i, count), len(range(i, length, count))) for i in range(count)]
    together = Counter(itertools.chain.from_iterable(shares))
    assert together == Counter(f"a {i}" for i in range(length))


@few
@pytest.mark.slow
@given(st.lists(st.tuples(lengths, st.sampled_from([0.5, 1.0, 2.5])), min_size=1, max_size=3), counts, seeds)
def test_processes_read_in_turns_what_one_alone_reads(chosen: list[tuple[int, float]], count: int, seed: int) -> None:
    """So no two read the same one, and another number of them goes on where these have stopped."""
    sources = [source(name, length, weight) for name, (length, weight) in zip("abc", chosen, strict=False)]
    shares = [read(sources, seed, Share(i, count), 20) for i in range(count)]
    turns = itertools.chain.from_iterable(zip(*shares, strict=True))
    assert list(turns) == read(sources, seed, Share(), 20 * count)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.1, 3.0), (0.25, 0.4, 1.0), (1.0, 7.0, 0.3)])
def test_weights_hold_within_a_hundredth_of_a_thousand(weights: tuple[float, ...]) -> None:
    sources = [source(name, 37, weight) for name, weight in zip("abc", weights, strict=False)]
    drawn = Counter(sample.split()[0] for sample in read(sources, 0, Share(), 1000))
    for name, weight in zip("abc", weights, strict=False):
        assert drawn[name] / 1000 == pytest.approx(weight / sum(weights), abs=0.01)
