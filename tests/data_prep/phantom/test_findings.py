"""Phantoms of several findings: masks are of what is drawn, and answers follow from masks."""

import numpy as np
import pytest
from scipy import ndimage

from data_prep.phantom.findings import KINDS, draw_findings, source
from tests.kit.recipes import load_config
from vitar_jax.episodes.object_tags import mentions
from vitar_jax.processing.masks import full_size, nearest

SAMPLES = [source("train", seed=3)[index] for index in range(40)]


def test_a_sample_depends_on_seed_split_and_index_alone():
    first, again = source("test", seed=1, length=9)[4], source("test", seed=1, length=7)[4]
    assert (first.question, first.objects) == (again.question, again.objects)
    assert first.images[0].tobytes() == again.images[0].tobytes()
    for other in (source("train", seed=1)[4], source("test", seed=2)[4], source("test", seed=1)[5]):
        assert other.images[0].tobytes() != first.images[0].tobytes()


def test_masks_are_of_what_is_drawn():
    for sample in SAMPLES:
        picture = np.asarray(sample.images[0], float)
        for thing in sample.objects:
            mask = thing.mask.array
            around = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
            assert ndimage.binary_erosion(mask).sum() and picture[mask].min() > picture[around].mean()
            has_hole = ndimage.binary_fill_holes(mask).sum() > mask.sum()
            assert ndimage.label(mask)[1] == 1 and has_hole == (thing.caption == "ring")
        first, second = (thing.mask.array for thing in sample.objects)
        assert not (ndimage.binary_dilation(first) & second).any()


def test_the_kind_does_not_tell_which_is_larger():
    drawn = [draw_findings(np.random.default_rng(seed), 96) for seed in range(400)]
    areas = np.array([[finding.radius**2 * KINDS[finding.kind] for finding in findings] for findings in drawn])
    wins = (areas[:, :, None] > areas[:, None, :]).mean(0)[~np.eye(len(KINDS), dtype=bool)]
    assert 0.35 < wins.min() and wins.max() < 0.65


def test_answers_follow_from_masks():
    seen = set()
    for sample in SAMPLES:
        (answer,) = (thing for thing in sample.objects if thing.in_answer)
        (other,) = (thing for thing in sample.objects if not thing.in_answer)
        relation = sample.metadata["relation"]
        seen.add(relation)
        (y, x), (other_y, other_x) = (ndimage.center_of_mass(thing.mask.array) for thing in (answer, other))
        right = {
            "higher": other_y - y >= 9,
            "further left": other_x - x >= 9,
            "larger": answer.mask.area >= 1.4 * other.mask.area,
        }
        stated = {
            "higher": lambda thing: f"in row {int(20 * ndimage.center_of_mass(thing.mask.array)[0] / 96)}",
            "further left": lambda thing: f"in column {int(20 * ndimage.center_of_mass(thing.mask.array)[1] / 96)}",
            "larger": lambda thing: f"of size {round(np.log(thing.mask.area / 110) / np.log(1.2))}",
        }
        assert right[relation] and sample.question.startswith(f"Which is {relation}: ")
        assert sample.answer == f"The {answer.caption}." and all(thing.in_reasoning for thing in sample.objects)
        shown = sample.demonstration
        assert shown is not None and mentions(shown.answer.thought) == ["obj1", "obj2"]
        for thing in sample.objects:
            assert f"<ver><{thing.name}> {thing.caption}</ver> {stated[relation](thing)}" in shown.answer.thought
        assert mentions(shown.answer.text) == [answer.name]
    assert seen == {"higher", "further left", "larger"}


def test_a_larger_picture_has_the_same_findings():
    small, large = source("train", seed=3)[0], source("train", seed=3, side=192)[0]
    assert large.images[0].size == (192, 192) and small.question == large.question
    for thing, twice in zip(small.objects, large.objects, strict=True):
        assert twice.mask.area == pytest.approx(4 * thing.mask.area, rel=0.15)


def test_areas_are_of_the_range_that_a_recipe_asks_for():
    found = source("train", seed=3, areas=(300, 900))
    objects = [thing for index in range(30) for thing in found[index].objects]
    areas = np.array([thing.mask.area for thing in objects])
    assert 280 < areas.min() < 400 and 700 < areas.max() < 930
    sample = next(found[index] for index in range(30) if found[index].metadata["relation"] == "larger")
    shown = sample.demonstration
    assert shown is not None
    for thing in sample.objects:
        size = max(0, round(np.log(thing.mask.area / 300) / np.log(1.2)))
        assert f"<ver><{thing.name}> {thing.caption}</ver> of size {size}" in shown.answer.thought


@pytest.mark.parametrize(("graded", "step"), [(False, 0.0), (True, 0.1)])
def test_kinds_differ_in_brightness_where_a_recipe_says_so(graded, step):
    drawn = [draw_findings(np.random.default_rng(seed), 96, graded=graded) for seed in range(400)]
    brightness = np.array([[finding.brightness for finding in findings] for findings in drawn])
    np.testing.assert_allclose(np.diff(brightness.mean(0)), step, atol=0.02)
    assert (brightness[:, :-1] > brightness[:, 1:]).mean() > 0.1 and brightness.max() <= 0.7


def test_masks_of_the_quickstart_lose_nothing_on_their_way_to_targets_and_back():
    """Targets of half that side do not survive: nearest takes the first pixel of each square, and shifts the mask."""
    recipe = load_config("quickstart_masks")
    side, found = recipe.model.sam2.image_size, source("test", **recipe.evaluation.options)
    masks = [thing.mask.array for index in range(20) for thing in found[index].objects]
    for ground, low, high in ((side, 1, 1), (side // 2, 0.5, 0.9)):
        logits = [np.where(nearest(mask, ground // 4, ground // 4), 4.0, -4.0) for mask in masks]
        back = [full_size(one, ground, *mask.shape) for one, mask in zip(logits, masks, strict=True)]
        ious = [(mask & other).sum() / (mask | other).sum() for mask, other in zip(masks, back, strict=True)]
        assert low <= np.mean(ious) <= high


def test_a_single_finding_is_described_by_all_that_comparisons_say():
    kinds = set()
    for index in range(24):
        sample = source("train", seed=3, task="find")[index]
        (thing,) = sample.objects
        kinds.add(thing.caption)
        y, x = ndimage.center_of_mass(thing.mask.array)
        size = max(0, round(np.log(thing.mask.area / 110) / np.log(1.2)))
        place = f"of size {size} in row {int(20 * y / 96)} and column {int(20 * x / 96)}"
        shown = sample.demonstration
        assert shown is not None and shown.answer.thought == f"The <ver><obj1> {thing.caption}</ver> {place}."
        assert sample.question == f"Where is the {thing.caption}?" and thing.in_reasoning and thing.in_answer
        assert mentions(shown.answer.text) == ["obj1"] and sample.answer == f"The {thing.caption}."
    assert kinds == {*KINDS}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "count"}, "task"),
        ({"side": 9}, "side"),
        ({"areas": (400, 300)}, "areas"),
        ({"areas": (500, 900)}, "areas"),
        ({"relations": ("near",)}, "relations"),
        ({"relations": ()}, "relations"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_argument_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        source("train", **options)
    with pytest.raises(ValueError, match="split"):
        source("validation")
