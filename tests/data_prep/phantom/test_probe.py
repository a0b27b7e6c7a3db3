"""What the phantoms rest on: the kind is not in the first view, and the probe that says so can see."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.phantom.pictures import KINDS, SIZE
from data_prep.phantom.probe import (
    CHANCE,
    LEAKING_PERIOD,
    PATCH,
    first_view_patches,
    fit_and_score,
    probe_accuracy,
)
from data_prep.phantom.search import Task, worlds


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


SMALL = dict(train=2000, test=600, steps=400)


@pytest.mark.slow
def test_kinds_cannot_be_read_in_the_first_view(cache_dir: Path) -> None:
    assert probe_accuracy(seed=0, cache_dir=cache_dir, **SMALL) <= 0.30


@pytest.mark.sweep
def test_kinds_cannot_be_read_in_the_first_view_by_the_whole_probe(cache_dir: Path) -> None:
    assert probe_accuracy(seed=0, cache_dir=cache_dir) <= 0.30


@pytest.mark.parametrize("task", ["search", "odd"])
def test_chance_is_the_share_of_the_commonest_kind(task: Task) -> None:
    counts = Counter(kind for world in worlds(task, 2 if task == "search" else 3) for kind in world.kinds)
    assert max(counts.values()) / counts.total() == CHANCE[task]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["search", "odd"])
def test_kinds_of_several_spots_cannot_be_read_in_the_first_view(cache_dir: Path, task: Task) -> None:
    few = dict(train=800, test=300, steps=300)  # phantoms, of two or three spots
    assert probe_accuracy(seed=0, cache_dir=cache_dir, task=task, **few) <= CHANCE[task] + 0.05
    assert probe_accuracy(seed=0, cache_dir=cache_dir, task=task, period=LEAKING_PERIOD, **few) > 0.75


@pytest.mark.slow
def test_the_probe_reads_kinds_that_the_downsampling_keeps(cache_dir: Path) -> None:
    assert probe_accuracy(seed=0, cache_dir=cache_dir, period=LEAKING_PERIOD, **SMALL) > 0.8


@pytest.mark.slow
def test_the_probe_reads_kinds_in_the_original(cache_dir: Path) -> None:
    """At full resolution a patch as wide as the lesion's core shows the real textures."""
    train, test = (
        first_view_patches(split, seed=0, length=length, view=SIZE, cache_dir=cache_dir)
        for split, length in (("train", 2000), ("test", 600))
    )
    assert fit_and_score(train, test, steps=400, seed=0) > 0.8


@pytest.mark.slow
def test_patches_hold_the_lesion_in_their_middle(cache_dir: Path) -> None:
    patches, kinds = first_view_patches("test", seed=0, length=200, view=84, cache_dir=cache_dir)
    assert patches.shape == (200, PATCH, PATCH)
    assert set(kinds) == set(range(len(KINDS)))
    y, x = np.unravel_index(patches.mean(0).argmax(), (PATCH, PATCH))
    assert {int(y), int(x)} <= {PATCH // 2 - 1, PATCH // 2}
