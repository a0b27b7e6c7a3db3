"""Phantoms with several spots: the same every time, readable one look at a time, right as often as looks allow."""

from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from data_prep.phantom import search
from data_prep.phantom.pictures import KINDS, SIZE
from data_prep.phantom.samples import SIZE_WORDS, region_words
from data_prep.phantom.search import LETTER, share_right
from tests.kit import tiny
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import write_look
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box, centre, iou
from vitar_jax.episodes.sample import Look

STAIRS = {
    ("search", 2): (1 / 3, 2 / 3, 1),
    ("search", 3): (1 / 3, 5 / 9, 7 / 9, 1),
    ("search", 4): (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1),
    ("odd", 3): (1 / 4, 1 / 3, 4 / 9, 1),
}
VIEW = 84


def source(task, **changes):
    return search.source("test", task=task, seed=0, length=200, **changes)


# --- the stairs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "spots"), STAIRS)
def test_looks_decide_how_often_an_answer_is_right(task, spots):
    assert [share_right(task, spots, looks) for looks in range(spots + 1)] == pytest.approx(STAIRS[task, spots])


def guess(task: str, spots: int, seen: list[str]) -> dict[str, float]:
    """Returns the best answers to what was seen, with their probabilities, from all assignments that a task allows."""
    answers = Counter()
    for kinds in product(KINDS, repeat=spots):
        counts = Counter(kinds)
        if len(counts) != 2 or list(kinds[: len(seen)]) != seen:
            continue
        if task == "search" and counts["flat"] == spots - 1:
            answers[max(counts, key=lambda kind: kind != "flat")] += 1
        if task == "odd" and min(counts.values()) == 1:
            answers[min(counts, key=counts.__getitem__)] += 1
    best = [kind for kind in answers if answers[kind] == max(answers.values())]
    return dict.fromkeys(best, 1 / len(best))


def read(crop) -> str:
    """Returns the kind that the enlarged gold box of a spot shows, from its spectrum: the texture has 9 to 12 waves."""
    spectrum = np.abs(np.fft.fft2(np.asarray(crop.convert("L").resize((VIEW, VIEW)), float)))
    waves, none = slice(9, 13), slice(0, 3)
    peaks = {"rows": spectrum[waves, none], "columns": spectrum[none, waves], "checks": spectrum[waves, waves]}
    kind = max(peaks, key=lambda name: peaks[name].max())
    return kind if peaks[kind].max() > 5000 else "flat"


@pytest.mark.parametrize(("task", "spots"), [("search", 2), ("search", 3), ("odd", 3)])
def test_an_oracle_that_plays_episodes_climbs_the_stairs(task, spots):
    """It zooms into spots, reads their kinds in the tool's images alone, and guesses. Its share is exact over all orders."""
    protocol = replace(PROTOCOLS["zoom"], max_turns=spots + 1)
    processor = tiny.processor(9, max_pixels=VIEW**2)
    for n in range(8):
        sample = source(task, spots=spots)[n]
        episode = Episode(sample, protocol, processor, Limits(tokens=1000, turn_tokens=200, images=1 + spots))
        kinds = []
        for box in [*sample.boxes, *(Box(*box, "original") for box in sample.metadata["other_boxes"])]:
            episode.add_turn(processor.chat.turn(write_look(episode, Look("", "zoom", (box,)))), None)
            assert episode.turns[-1].error is None
            kinds.append(read(episode.images[-1].pixels))
        for looks, share in enumerate(STAIRS[task, spots]):
            guesses = [guess(task, spots, list(seen)) for seen in permutations(kinds, looks)]
            assert np.mean([guessed.get(sample.metadata["kind"], 0) for guessed in guesses]) == pytest.approx(share)


@pytest.mark.parametrize(("task", "looks"), [("search", 1), ("search", 2), ("odd", 2)])
def test_demonstrations_are_right_as_often_as_their_looks_allow(task, looks):
    items = source(task, looks=looks)
    answers = [(items[n].demonstration.answer.text, items[n].answer) for n in range(150)]
    share = np.mean([given == true for given, true in answers])
    assert share == pytest.approx(share_right(task, items.count, looks), abs=0.09)


# --- the source -------------------------------------------------------------------------------------


def same(a, b):
    return replace(a, images=()) == replace(b, images=()) and np.array_equal(a.images[0], b.images[0])


@pytest.mark.parametrize("task", ["search", "odd"])
def test_items_depend_on_nothing_but_their_index(task):
    a, b = source(task), source(task)
    backwards = {n: b[n] for n in reversed(range(8))}
    assert all(same(a[n], backwards[n]) for n in range(8))
    assert same(replace(a, length=500)[7], a[7]) and not same(a[0], a[1])
    assert len({a[n].sample_id for n in range(8)}) == 8


@pytest.mark.parametrize(("task", "spots"), STAIRS)
def test_boxes_show_the_answer_and_the_other_spots(task, spots):
    items = source(task, spots=spots)
    for n in range(12):
        sample = items[n]
        shown = sample.metadata
        boxes = [Box(*box, "original") for box in shown["other_boxes"]]
        boxes.insert(shown["spot"], sample.boxes[0])
        assert dict(sample.options)[sample.answer] == shown["kind"] == shown["kinds"][shown["spot"]]
        assert LETTER[shown["kind"]] == sample.answer
        kinds = Counter(shown["kinds"])
        assert sorted(kinds.values()) == [1, spots - 1] and kinds[shown["kind"]] == 1
        if task == "search":
            assert kinds["flat"] == spots - 1 and "flat" not in dict(sample.options).values()
        assert [read(sample.images[0].crop(box.xyxy)) for box in boxes] == list(shown["kinds"])
        assert np.array([centre(box) for box in boxes]) == pytest.approx(np.array(shown["centres"]))
        for one, other in product(shown["centres"], repeat=2):
            assert one == other or max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= items.apart


def test_answers_and_places_are_uniform():
    items = [source("search", spots=3)[n] for n in range(180)]
    assert [Counter(s.metadata["spot"] for s in items)[n] / 180 for n in range(3)] == pytest.approx([1 / 3] * 3, abs=0.1)
    assert [Counter(s.answer for s in items)[letter] / 180 for letter in "BCD"] == pytest.approx([1 / 3] * 3, abs=0.1)


def test_a_demonstration_looks_until_it_knows():
    items = source("search", spots=3, looks=3, tool="zoom", close=0.5)
    lengths, words = Counter(), Counter()
    for n in range(90):
        sample = items[n]
        centres, kinds = sample.metadata["centres"], sample.metadata["kinds"]
        looks, answer = sample.demonstration.looks, sample.demonstration.answer
        said = ""
        for number, look in enumerate(looks):
            (box,) = look.regions
            (spot,) = [s for s, (x, y) in enumerate(centres) if box.x1 < x < box.x2 and box.y1 < y < box.y2]
            assert look.tool == "zoom" and look.image == 0
            size = SIZE_WORDS[0] if box.width < 60 else SIZE_WORDS[1]
            assert look.thought == f"{said}spot {region_words(*centres[spot])} zoom {size}"
            assert [edge * VIEW / SIZE for edge in box.xyxy] == pytest.approx([round(edge * VIEW / SIZE) for edge in box.xyxy])
            assert (kinds[spot] == "flat") == (number < len(looks) - 1)
            said = f"shows {kinds[spot]} "
            words[size] += 1
        assert answer.thought == f"shows {sample.metadata['kind']}" and answer.text == sample.answer
        assert all(iou(a.regions[0], b.regions[0]) == 0 for a in looks for b in looks if a is not b)
        lengths[len(looks)] += 1
    assert [lengths[n] / 90 for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.15)
    assert words["close"] / words.total() == pytest.approx(0.5, abs=0.12)


def test_arguments_are_checked():
    items = source("search")
    for index in (-1, 200):
        with pytest.raises(IndexError, match="source of 200"):
            items[index]
    for change, words in (
        (dict(split="validation"), "split: got 'validation'"),
        (dict(task="look"), "task: got 'look'"),
        (dict(spots=1), "spots: got 1, expected 2 to 4 for 'search'"),
        (dict(task="odd", spots=2), "spots: got 2, expected 3 to 4 for 'odd'"),
        (dict(apart=300), "apart: got 300"),
        (dict(close=1.5), "close: got 1.5"),
        (dict(looks=-1), "seed, length, looks, view"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(items, **change)
    assert str(items.cache_dir) not in repr(items)
