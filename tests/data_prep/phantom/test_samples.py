"""Phantoms: the same every time, the lesion where the record says, the kind told by texture alone."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from data_prep.phantom import samples
from data_prep.phantom.pictures import KINDS, SIZE
from data_prep.phantom.samples import (
    GOLD_PX,
    LETTERS,
    SIZE_WORDS,
    Phantoms,
    gold_box,
    place_answer,
    region_words,
    square_inside,
)
from data_prep.phantom.samples import source as open_source
from vitar_jax.episodes.regions import Box, centre, iou, to_frame
from vitar_jax.episodes.sample import Answer

TASKS = ("look", "where", "which", "warmup")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Makes a source of 200 test phantoms; all share one cache."""
    cache = tmp_path_factory.mktemp("phantoms")
    return lambda task, **changes: Phantoms("test", seed=3, length=200, task=task, cache_dir=cache, **changes)


def same(a, b):
    return replace(a, images=()) == replace(b, images=()) and all(
        np.array_equal(x, y) for x, y in zip(a.images, b.images, strict=True)
    )


@pytest.mark.slow
def test_the_place_is_in_the_first_view(source):
    """A blob filter finds every lesion to within a pixel of the 84 px view."""
    looks = source("look")
    for n in range(50):
        (picture,) = looks[n].images
        view = np.asarray(picture.resize((84, 84), Image.Resampling.BICUBIC), np.float32)[3:-3, 3:-3]
        view = np.pad(view, 12, mode="reflect")
        blobs = (gaussian_filter(view, 1.2) - gaussian_filter(view, 3))[12:-12, 12:-12]
        y, x = np.unravel_index(blobs.argmax(), blobs.shape)
        true_x, true_y = (at * 84 / SIZE for at in looks[n].metadata["centre"])
        assert np.hypot(x + 3.5 - true_x, y + 3.5 - true_y) <= 1


# --- places -------------------------------------------------------------------------------------


def test_region_words_by_hand():
    assert region_words(10, 10) == "upper left"
    assert region_words(224, 224) == "middle centre"
    assert region_words(440, 200) == "middle right"
    assert region_words(30, 80, size=84) == "lower centre"
    assert region_words(SIZE, -1) == "upper right"  # clamped


@given(st.floats(0, SIZE), st.floats(0, SIZE), st.floats(20, SIZE), st.sampled_from([1.0, SIZE / 84, SIZE / 112]))
def test_a_square_keeps_its_size_and_stays_inside(x, y, side, step):
    box = square_inside(x, y, side, step)
    assert box.width == pytest.approx(box.height)
    assert box.width == pytest.approx(max(1, round(side / step)) * step)
    assert min(box.xyxy) >= 0 and max(box.xyxy) <= SIZE + 1e-9
    for value in box.xyxy:
        assert value / step == pytest.approx(round(value / step))
    if side <= min(x, y, SIZE - x, SIZE - y):
        assert centre(box) == pytest.approx((x, y), abs=step / 2 + 1e-9)


def test_place_answer_by_hand():
    whole = Box(0, 0, SIZE, SIZE, "original")
    assert place_answer(122.7, 240.0, whole, 84) == "middle left 23, 45"
    assert place_answer(122.7, 240.0, Box(100, 200, 184, 284, "original"), 84) == "middle left 22, 40"


# --- the source -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_items_depend_on_nothing_but_their_index(source, task):
    a, b = source(task), source(task)
    assert len(a) == 200
    backwards = {n: b[n] for n in reversed(range(20))}
    assert all(same(a[n], backwards[n]) for n in range(20))
    longer = replace(a, length=500)
    assert same(longer[7], a[7])
    assert not same(a[0], a[1])
    assert len({a[n].sample_id for n in range(20)}) == 20


def test_items_are_the_same_from_many_threads(source):
    looks = source("look")
    alone = [looks[n] for n in range(24)]
    found: dict[int, bool] = {}

    def work(start):
        for n in range(start, 24, 4):
            found[n] = same(looks[n], alone[n])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(24), True)


@pytest.mark.parametrize("task", TASKS)
def test_the_picture_is_brighter_where_the_lesion_is_said_to_be(source, task):
    items = source(task)
    for n in range(30):
        sample = items[n]
        x, y = centre(sample.boxes[0])
        pixels = np.asarray(sample.images[0], np.float32)
        assert sample.images[0].mode == "L"
        rows, columns = (np.arange(side) + 0.5 for side in pixels.shape)
        scale = sample.boxes[0].width / GOLD_PX  # warm-up pictures are enlarged or shrunk to the view
        radius = np.hypot(rows[:, None] - y, columns[None, :] - x) / scale
        assert 10 * scale <= min(x, y) and max(x, y) <= pixels.shape[1] - 10 * scale
        assert pixels[radius < 5].mean() > pixels[(radius > 14) & (radius < 24)].mean() + 15


def test_look_items_ask_with_options_and_show_how_an_expert_looks(source):
    looks = source("look")
    model_sides = dict(zip(SIZE_WORDS, (10, 20, 40), strict=True))
    sizes = []
    for n in range(len(looks)):
        sample = looks[n]
        demonstration = sample.demonstration
        assert sample.images[0].size == (SIZE, SIZE)
        assert dict(sample.options)[sample.answer] == sample.metadata["kind"]
        assert sample.boxes == (gold_box(*sample.metadata["centre"]),)
        (look,) = demonstration.looks
        assert look.tool == "zoom"
        spot = re.fullmatch(r"spot (\w+ \w+) zoom (\w+)", look.thought)
        assert spot and spot[1] == region_words(*sample.metadata["centre"])
        assert demonstration.answer == Answer(f"shows {sample.metadata['kind']}", sample.answer)
        (box,) = look.regions
        in_view = to_frame(box, "model_input", (SIZE, SIZE), (84, 84))
        assert in_view.width == pytest.approx(model_sides[spot[2]])
        assert in_view.xyxy == pytest.approx([round(value) for value in in_view.xyxy])
        x, y = sample.metadata["centre"]
        assert box.x1 + 8 < x < box.x2 - 8 and box.y1 + 8 < y < box.y2 - 8
        assert iou(box, sample.boxes[0]) > 0
        sizes.append(spot[2])
    shares = [sizes.count(word) / len(sizes) for word in SIZE_WORDS]
    assert shares == pytest.approx([0.3, 0.4, 0.3], abs=0.12)
    assert {looks[n].answer for n in range(40)} == set(LETTERS)


def test_expert_boxes_follow_the_arguments(source):
    steady = source("look", size_probabilities=(0.0, 1.0, 0.0), jitter=0.0)
    for n in range(20):
        (box,) = steady[n].demonstration.looks[0].regions
        assert box.width == pytest.approx(SIZE * 20 / 84)
        assert centre(box) == pytest.approx(steady[n].metadata["centre"], abs=SIZE / 84)


@pytest.mark.parametrize("task", ["where", "which"])
def test_warm_up_answers_point_at_the_lesion(source, task):
    items = source(task)
    sides = []
    for n in range(len(items)):
        sample = items[n]
        left, top, right, bottom = sample.metadata["crop"]
        assert sample.images[0].size == (84, 84) and right - left == bottom - top
        *kind, row, column, x, y = sample.answer.replace(",", "").split()
        true_x, true_y = (
            (at - start) * 84 / (right - left) for at, start in zip(sample.metadata["centre"], (left, top), strict=True)
        )
        assert (int(x), int(y)) == (int(true_x), int(true_y))
        assert f"{row} {column}" == region_words(true_x, true_y, size=84)
        letter = LETTERS[KINDS.index(sample.metadata["kind"])]
        assert kind == ([sample.metadata["kind"], letter] if task == "which" else [])
        sides.append(right - left)
    if task == "where":
        assert np.mean(np.array(sides) == SIZE) == pytest.approx(0.75, abs=0.12)
    else:
        assert np.mean(np.array(sides) <= 56) == pytest.approx(0.5, abs=0.12)
        assert 31 <= min(sides) and max(sides) <= 214


def test_warm_up_mixes(source):
    kinds = [sample.metadata["task"] for sample in map(source("warmup", warmup_where=0.25).__getitem__, range(200))]
    assert kinds.count("where") / 200 == pytest.approx(0.25, abs=0.1)
    assert set(kinds) == {"where", "which"}


def test_arguments_are_checked(source):
    looks = source("look")
    for index in (-1, 200):
        with pytest.raises(IndexError, match="source of 200"):
            looks[index]
    with pytest.raises(ValueError, match="split"):
        replace(looks, split="validation")
    with pytest.raises(ValueError, match="task"):
        replace(looks, task="see")
    with pytest.raises(ValueError, match="sum to 1"):
        replace(looks, size_probabilities=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="seed"):
        replace(looks, seed=-1)


def test_the_repr_names_what_items_depend_on_and_no_folder(source):
    looks = source("look")
    assert repr(replace(looks, jitter=1.0)) != repr(looks)
    assert str(looks.cache_dir) not in repr(looks)


# --- the shortcut ---------------------------------------------------------------------------------


@pytest.fixture
def shortcuts(monkeypatch):
    """Makes a source of shortcuts on black backgrounds, which take no time to generate."""
    monkeypatch.setattr(samples, "load_backgrounds", lambda *_: np.zeros((1, SIZE, SIZE), np.uint8))
    return lambda split, **options: open_source(split, task="shortcut", seed=3, length=200, cache_dir="nowhere", **options)


@pytest.mark.parametrize(
    "split, options, share",
    [("train", {}, 0.8), ("train", {"given_away": 0.25}, 0.25), ("test", {}, 0.0), ("test", {"given_away": 1.0}, 0.0)],
)
def test_a_question_gives_the_answer_away_in_a_share_of_training_alone(shortcuts, split, options, share):
    count = 120 if share else 20
    named = [item.metadata for item in map(shortcuts(split, **options).__getitem__, range(count))]
    given = [one["named"] == one["kind"] for one in named]
    assert np.mean(given) == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / count))
    assert [bool(one["given_away"]) for one in named] == given and len({one["named"] for one in named}) == len(KINDS)


def test_a_shortcut_changes_the_question_alone(shortcuts):
    items = shortcuts("train")
    for n in range(5):
        sample, look = items[n], items.looks[n]
        assert sample.question == f"Which texture is it, {sample.metadata['named']}?"
        assert sample.sample_id == look.sample_id.replace("look", "shortcut")
        assert same(replace(sample, sample_id=look.sample_id, question=look.question, metadata=look.metadata), look)
    assert same(items[7], replace(items, looks=replace(items.looks, length=8))[7])
    assert str(items.looks.cache_dir) not in repr(items) and repr(items) != repr(replace(items, given_away=0.5))
    for wrong in (dict(given_away=1.5), dict(looks=replace(items.looks, task="where"))):
        with pytest.raises(ValueError, match="a share from 0 to 1"):
            replace(items, **wrong)
