"""Groups of different samples with the same id stay separate."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import answered
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.sample import Sample
from vitar_jax.rollout import groups
from vitar_jax.rollout.groups import fork_groups, number_occurrences


def leader(name: str) -> Episode:
    return Episode(Sample(name, "Which?", (), "B"), answered.VITAR, answered.PROCESSOR, Limits(tokens=600, turn_tokens=200))


def group_names(ids: Sequence[str]) -> list[str]:
    return [group[0].group_id for group in fork_groups([leader(name) for name in ids], 1, Counter())]


# "plumless" and "buckeroo" have the same CRC-32.
@pytest.mark.parametrize(
    "ids", [["7", "8"], ["7", "7", "7"], ["7", "7#1", "7", "7#1"], ["7#1", "7", "7"], ["plumless", "buckeroo"]]
)
def test_a_group_has_a_name_and_draws_of_its_own(ids: list[str]) -> None:
    played = fork_groups([leader(name) for name in ids], 2, Counter())
    assert [[(e.sample.sample_id, e.member) for e in group] for group in played] == [[(name, 0), (name, 1)] for name in ids]
    for one, other in combinations(played, 2):
        assert one[0].group_id != other[0].group_id and one[0].draw_key != other[0].draw_key
        assert one[0].group_id == one[1].group_id and one[0].draw_key == one[1].draw_key


def test_names_that_are_unique_stay_as_they_are() -> None:
    assert group_names(["a", "b", "c"]) == ["a", "b", "c"]
    assert leader("a").draw_key == 0xE8B7BE43  # the CRC-32 of "a"


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_any_number_of_processes_has_the_same_groups(keys: list[int], count: int) -> None:
    alone = number_occurrences([keys], Counter())[0]
    assert len({*zip(keys, alone, strict=True)}) == len(keys)
    shards = number_occurrences([keys[process::count] for process in range(count)], Counter())
    assert shards == [alone[process::count] for process in range(count)]


def test_processes_number_their_groups_together(monkeypatch: Any) -> None:
    """The other process plays a sample of the same name before ours, and more samples than we do."""
    monkeypatch.setattr(groups, "gather_json", lambda keys: [[leader("7").draw_key] * 2, keys])
    monkeypatch.setattr("jax.process_index", lambda: 1)
    seen: Counter[int] = Counter()
    assert [group[0].group_id for group in fork_groups([leader("7")], 1, seen)] == ["7#1"]
    assert fork_groups([], 1, seen) == []
    assert [group[0].group_id for group in fork_groups([leader("7")], 1, seen)] == ["7#6"]
