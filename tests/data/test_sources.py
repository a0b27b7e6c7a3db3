"""What training knows of its data sets: whether every question has options."""

import pytest

from vitar_jax.data.sources import SOURCES, SourceConfig, options_only
from vitar_jax.episodes.sample import Sample, letters
from vitar_jax.errors import DataError


class Questions:
    """Questions with options, but for one at `open_at`; the one at `broken_at` cannot be read."""

    def __init__(self, split: str, *, count: int = 1000, open_at: int = -1, broken_at: int = -1):
        self.count, self.open_at, self.broken_at = count, open_at, broken_at

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken_at:
            raise DataError("broken")
        return Sample(str(index), "Which?", (), "A", () if index == self.open_at else letters(["flat", "rows"], "options"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([{}], True),
        ([{"broken_at": 0}], True),
        ([{"count": 3, "open_at": 2}], False),
        ([{}, {"open_at": 0}], False),
        ([{"count": 0}], False),
    ],
    ids=["all", "one unreadable", "one open", "an open source", "none"],
)
def test_training_on_options_alone_is_known(
    options: list[dict[str, int]], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "made", Questions)
    assert options_only([SourceConfig("made", options=chosen) for chosen in options]) == expected
