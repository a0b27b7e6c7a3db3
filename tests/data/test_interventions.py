"""Interventions: exact pictures by hand, and what each may not touch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.stats import norm

from tests.kit.images import noise
from vitar_jax.data.evidence import elsewhere, innermost, painted, per_channel
from vitar_jax.data.interventions import INTERVENTIONS, NAMES_SIDE, Change, Given, find_change, label
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample, SegmentedObject
from vitar_jax.errors import ConfigError, DataError

# Rows of tens: 10 11 12 ... in the second row. The box holds 11 12 21 22.
VALUES = np.array([[10 * y + x for x in range(6)] for y in range(4)], np.uint8)
GREY = Image.fromarray(VALUES)
BOX = Box(1, 1, 3, 3, "original")


def mask(rows: list[str]) -> Mask:
    return Mask.of(np.array([[place == "#" for place in row] for row in rows]), "original")


CORNER = mask(["....##", "....##", "......", "......"])
STRIPE = mask(["......", "......", "......", "###..."])


def sample(**changes: object) -> Sample:
    values = {"sample_id": "s", "question": "Which?", "images": (GREY,), "answer": "A", "boxes": (BOX,)} | changes
    return Sample(**values)  # type: ignore[arg-type]


def outlining(*masks: Mask) -> Given:
    return Given(outlined={"s": masks})


def lending(samples: list[Sample], count: int) -> Given:
    return Given(samples, count)


def shown(name: str, changed: Sample, given: Given | None = None) -> np.ndarray:
    """The pixels of image 0, where all else is as in the sample."""
    found = find_change(name, given or Given())(changed)
    assert dataclasses.replace(found, images=changed.images) == changed
    return np.asarray(found.images[0])


OUTSIDE = [0, 1, 2, 3, 4, 5, 10, 13, 14, 15, 20, 23, 24, 25, 30, 31, 32, 33, 34, 35]
MEAN = round(sum(OUTSIDE) / len(OUTSIDE))  # 17.6


def test_golden_pictures() -> None:
    """Each by hand."""
    assert MEAN == 18
    pictures = {
        "blank": np.full((4, 6), 128),
        "region_erased": [[0, 1, 2, 3, 4, 5], [10, 18, 18, 13, 14, 15], [20, 18, 18, 23, 24, 25], [30, 31, 32, 33, 34, 35]],
        "region_only": [[18] * 6, [18, 11, 12, 18, 18, 18], [18, 21, 22, 18, 18, 18], [18] * 6],
        # All four pixels are as deep; the first of them are taken: 33 % of 4 is 1, 67 % is 3.
        "erased:33": [[0, 1, 2, 3, 4, 5], [10, 18, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35]],
        "erased:67": [[0, 1, 2, 3, 4, 5], [10, 18, 18, 13, 14, 15], [20, 18, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35]],
        "erased:100": [[0, 1, 2, 3, 4, 5], [10, 18, 18, 13, 14, 15], [20, 18, 18, 23, 24, 25], [30, 31, 32, 33, 34, 35]],
        "blur:0": VALUES,
    }
    for name, picture in pictures.items():
        np.testing.assert_array_equal(shown(name, sample()), picture, name)
    flipped = find_change("flip")(sample())
    np.testing.assert_array_equal(flipped.images[0], VALUES[:, ::-1])
    assert flipped.boxes == (Box(3, 1, 5, 3, "original"),)


def test_a_region_elsewhere_is_as_large_and_away() -> None:
    """There are few places for a box of two by two beside it; the fill is the mean of all but the erased."""
    picture = shown("erase_elsewhere", sample())
    changed = picture != VALUES
    rows, columns = np.nonzero(changed)
    assert np.ptp(rows) == np.ptp(columns) == 1 and not changed[1:3, 1:3].any()
    assert set(picture[changed]) <= {round(VALUES[~changed].mean())}
    np.testing.assert_array_equal(picture, shown("erase_elsewhere", sample()))
    assert len({shown("erase_elsewhere", sample(sample_id=f"{n}")).tobytes() for n in range(20)}) > 3


def test_masks_come_before_boxes() -> None:
    objects = (
        SegmentedObject("obj1", CORNER, in_reasoning=True),
        SegmentedObject("obj2", STRIPE, in_answer=True),
        SegmentedObject("obj3", mask(["#....."] + ["......"] * 3)),  # not evidence
    )
    both = CORNER.array | STRIPE.array
    fill = round(VALUES[~both].mean())
    np.testing.assert_array_equal(shown("region_erased", sample(objects=objects)), np.where(both, fill, VALUES))
    # The experts' masks of the reasoning alone.
    gold = shown("erase_gold", sample(objects=objects))
    np.testing.assert_array_equal(gold[~CORNER.array], VALUES[~CORNER.array])
    assert (gold[CORNER.array] != VALUES[CORNER.array]).all()


def test_partly_covered_pixels_are_erased_and_what_lies_outside_is_cut() -> None:
    picture = shown("region_erased", sample(boxes=(Box(3.5, 2.5, 9, 9, "original"),)))
    assert ((picture != VALUES) == np.pad(np.ones((2, 3), bool), ((2, 0), (3, 0)))).all()


def test_a_region_in_colour() -> None:
    image = noise(40, 30)
    values = np.asarray(image)
    picture = np.asarray(painted(image, np.arange(30 * 40).reshape(30, 40) < 80))
    np.testing.assert_array_equal(picture[2:], values[2:])
    np.testing.assert_array_equal(picture[0, 0], values[2:].reshape(-1, 3).mean(0).round())
    np.testing.assert_array_equal(painted(image, np.ones((30, 40), bool)), np.full((30, 40, 3), 128))


@pytest.mark.parametrize("sigma", [1.0, 4.0, 16.0])
def test_a_blur_is_gaussian(sigma: float) -> None:
    """An edge becomes the normal distribution, which Pillow's repeated boxes approximate."""
    edge = Image.fromarray(np.repeat(np.arange(200)[None] >= 100, 9, 0).astype(np.uint8) * 255)
    expected = 255 * norm.cdf((np.arange(200) - 99.5) / sigma)
    assert abs(shown(f"blur:{sigma}", sample(images=(edge,))) - expected).max() < 0.02 * 255


def disc(width: int, height: int, x: int, y: int, radius: int) -> Mask:
    down, across = np.ogrid[:height, :width]
    return Mask.of((across - x) ** 2 + (down - y) ** 2 <= radius**2, "original")


@pytest.mark.parametrize("scale", [1, 6])
def test_nothing_of_what_is_blurred_away_is_left(scale: int) -> None:
    """Whatever was in the masks, the picture is the same; outside the masks nothing changes."""
    masks = tuple(disc(112 * scale, 84 * scale, *(scale * n for n in at)) for at in ((40, 40, 12), (90, 20, 8)))
    where = masks[0].array | masks[1].array
    pictures = []
    for seed in (1, 2):
        values = np.array(noise(112 * scale, 84 * scale, seed=0))
        values[where] = np.array(noise(112 * scale, 84 * scale, seed=seed))[where]
        plain = sample(images=(Image.fromarray(values),))
        pictures.append(shown("erase_masks", plain, outlining(*masks)))
        np.testing.assert_array_equal(pictures[-1][~where], values[~where])
    np.testing.assert_array_equal(*pictures)
    # It is smooth: no trace of the noise, which differs by 73 on average.
    assert pictures[0][where].std() < 10
    beside = shown("erase_elsewhere", plain, outlining(*masks))
    moved = (beside != values).any(-1)
    assert not (moved & where).any() and 0.98 < moved.sum() / where.sum() <= 1


def test_only_the_models_masks_stay_sharp() -> None:
    image, masks = noise(112, 84), (disc(112, 84, 40, 40, 12),)
    picture, values, where = shown("keep_masks", sample(images=(image,)), outlining(*masks)), np.asarray(image), masks[0].array
    np.testing.assert_array_equal(picture[where], values[where])
    assert values[~where].std() > 70 and picture[~where].std() < 12
    assert abs(picture[~where].mean() - values.mean()) < 2


@example(13)  # in these, few places are left inside the image
@example(24)
@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_elsewhere_is_a_moved_copy(seed: int) -> None:
    """Against all places, tried one by one."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(3, 9, 2)
    where = rng.random((height, width)) < rng.choice([0.05, 0.3, 0.7])
    where[0, 0] = True
    if seed % 2:  # a box
        y, x = rng.integers(height), rng.integers(width)
        where = np.pad(np.ones((min(2, height - y), min(3, width - x)), bool), ((y, 0), (x, 0)))
        where = np.pad(where, ((0, height - where.shape[0]), (0, width - where.shape[1])))
    moves = [(y, x) for y in range(height) for x in range(width)]
    free = [move for move in moves if not (np.roll(where, move, (0, 1)) & where).any()]
    if not free:
        with pytest.raises(DataError, match="s: the evidence covers"):
            elsewhere(where, [seed], "s")
        return
    found = elsewhere(where, [seed], "s")
    rows, columns = np.nonzero(where)
    down, across = range(-rows.min(), height - rows.max()), range(-columns.min(), width - columns.max())
    inside = [np.roll(where, (y, x), (0, 1)) for y in down for x in across]
    inside = [moved for moved in inside if not (moved & where).any()]
    places = inside or [np.roll(where, move, (0, 1)) for move in free]
    np.testing.assert_array_equal(found, places[np.random.default_rng([seed]).integers(len(places))])


def test_the_innermost_share_grows_from_within() -> None:
    where = disc(64, 48, 30, 20, 15).array | disc(64, 48, 58, 40, 4).array
    shares = [innermost(where, share) for share in (0.1, 0.33, 0.67, 1.0)]
    for share, found in zip((0.1, 0.33, 0.67, 1.0), shares, strict=True):
        assert found.sum() == round(share * where.sum())
    assert all(not (smaller & ~larger).any() for smaller, larger in zip(shares, shares[1:], strict=False))
    assert shares[0][20, 30] and not shares[1][5, 30] and (shares[-1] == where).all()
    square = np.zeros((9, 9), bool)
    square[1:8, 1:8] = True
    assert (innermost(square, 9 / 49) == np.pad(np.ones((3, 3), bool), 3)).all()
    assert (innermost(square, 10 / 49) ^ innermost(square, 9 / 49))[2, 2]  # of equal depth, the first
    assert (innermost(np.ones((5, 5), bool), 9 / 25) == np.pad(np.ones((3, 3), bool), 1)).all()  # the image ends outside


# --- all images ---------------------------------------------------------------------------------


def test_channels_are_changed_by_themselves_and_equal_ones_once() -> None:
    grey = noise(40, 30, "L")
    for image, times in ((grey, 1), (grey.convert("RGB"), 1), (noise(40, 30), 3)):
        seen = []

        def blur(one: Image.Image, seen: list = seen) -> Image.Image:
            seen.append(one.mode)
            return one.filter(ImageFilter.GaussianBlur(3))

        assert per_channel(image, blur) == image.filter(ImageFilter.GaussianBlur(3))
        assert seen == ["L"] * times


# --- flip ---------------------------------------------------------------------------------------


def test_regions_follow_a_flip() -> None:
    image = noise(40, 30)
    looks = (
        Look("left", "zoom", (Box(2, 3, 12, 13, "original"), Box(0.125, 0.2, 0.5, 0.5, "normalized"))),
        Look("mask", "mark", (disc(40, 30, 9, 9, 4),), 0),
    )
    shown = Demonstration(looks, Answer("so", "A"))
    one = SegmentedObject("obj1", disc(40, 30, 9, 9, 4), in_answer=True)
    plain = sample(images=(image,), boxes=(Box(2.5, 3, 12, 13, "original"),), objects=(one,), demonstration=shown)
    flipped = find_change("flip")(plain)
    values, mirrored = np.asarray(image), np.asarray(flipped.images[0])
    assert flipped.boxes == (Box(28, 3, 37.5, 13, "original"),)
    ours, theirs = mirrored[flipped.objects[0].mask.array], values[one.mask.array]
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))  # the same pixels
    assert flipped.demonstration is not None
    box, share = flipped.demonstration.looks[0].regions
    assert (box, share) == (Box(28, 3, 38, 13, "original"), Box(0.5, 0.2, 0.875, 0.5, "normalized"))
    assert flipped.demonstration.looks[1].regions == (flipped.objects[0].mask,)
    again = find_change("flip")(flipped)
    assert np.array_equal(np.asarray(again.images[0]), values) and (again.boxes, again.objects) == (plain.boxes, plain.objects)
    assert again.demonstration == shown
    # The width of an image that a tool made is not known.
    later = dataclasses.replace(shown, looks=(*looks, Look("", "zoom", (Box(0, 0, 1, 1, "original"),), image=1)))
    assert find_change("flip")(dataclasses.replace(plain, demonstration=later)).demonstration is None


def test_a_flip_says_whether_a_side_is_named_and_swaps_it_if_asked() -> None:
    asked = sample(
        question="Is the LEFT lung larger than the right-sided one? An upright view.",
        answer="Left",
        answers=("Left", "leftmost"),
        options=(("A", "Right lung"), ("B", "both")),
    )
    plain, swapped = find_change("flip")(asked), find_change("flip:swap")(asked)
    assert plain.metadata == swapped.metadata == {NAMES_SIDE: True}
    assert (plain.question, plain.answer, plain.options) == (asked.question, asked.answer, asked.options)
    assert swapped.question == "Is the RIGHT lung larger than the left-sided one? An upright view."
    assert (swapped.answer, swapped.answers) == ("Right", ("Right", "rightmost"))
    assert swapped.options == (("A", "Left lung"), ("B", "both"))
    assert find_change("flip:swap")(swapped).question == asked.question
    assert find_change("flip")(sample(question="Are copyrights lefts?")).metadata == {NAMES_SIDE: False}
    # What needs no image is changed first, so that it is known before an image is opened.
    change = find_change("flip:swap")
    assert change.restate(asked).question == swapped.question and change.restate(asked).images == asked.images


# --- other images, and what is missing ----------------------------------------------------------


def test_a_wrong_image_is_of_another_patient() -> None:
    def one(number: int, patient: str | None) -> Sample:
        metadata = {} if patient is None else {"patient_id": patient}
        return sample(sample_id=f"{number}", images=(Image.new("L", (8, 8), number),), metadata=metadata)

    many = [one(number, "first" if number < 5 else "second") for number in range(6)]
    for chosen in many[:5]:
        assert np.asarray(find_change("wrong_image", lending(many, 6))(chosen).images[0])[0, 0] == 5
    with pytest.raises(DataError, match="sample 0: none of 5 samples has different images of another patient"):
        find_change("wrong_image", lending(many, 5)).restate(many[0])
    unknown = [one(number, None) for number in range(2)]
    assert np.asarray(find_change("wrong_image", lending(unknown, 2))(unknown[0]).images[0])[0, 0] == 1


@pytest.mark.parametrize(
    "name, changes, given_, words",
    [
        ("region_erased", {"boxes": ()}, Given(), "sample s: has no box or mask"),
        ("erased:33", {"boxes": ()}, Given(), "sample s: has no box or mask"),
        ("erase_elsewhere", {"images": ()}, Given(), "sample s: has no image"),
        ("erase_gold", {}, Given(), "sample s: has no mask of its reasoning"),
        ("erase_masks", {"sample_id": "t"}, outlining(CORNER), "sample t: the earlier run outlined nothing"),
    ],
)
def test_what_is_missing_is_known_before_an_image_is_opened(
    name: str, changes: dict[str, object], given_: Given, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        find_change(name, given_).restate(sample(images=("nowhere.png",)) if not changes else sample(**changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"boxes": (Box(50, 50, 60, 60, "original"),)}, "sample s: box .* lies outside"),
        ({"objects": (SegmentedObject("obj1", disc(5, 4, 2, 2, 1), in_answer=True),)}, "sample s: got a mask of 5 x 4"),
        ({"objects": (SegmentedObject("o", Mask.of(np.zeros((4, 6), bool), "original"), in_answer=True),)}, "cover no pixel"),
    ],
)
def test_regions_that_do_not_fit_the_image(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        find_change("region_erased")(sample(**changes))


@pytest.mark.parametrize(
    "name, words",
    [
        ("blanc", "unknown intervention 'blanc', did you mean blank.; known are blank, wrong_image"),
        ("blur", "'blur': expected blur:SIGMA"),
        ("blur:-1", "expected blur:SIGMA"),
        ("blur:inf", "expected blur:SIGMA"),
        ("blur:soft", "expected blur:SIGMA"),
        ("erased:0", "expected erased:PERCENT"),
        ("flip:left", r"expected flip:\[swap\]"),
        ("blank:1", "'blank:1': expected blank without an argument"),
        ("keep_masks", "keep_masks: needs the masks of an earlier run; name it with --of"),
    ],
)
def test_names_that_do_not_exist(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_change(name)


def test_a_users_own_function(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from dataclasses import replace\nfrom PIL import Image\n\n"
        "def black(sample):\n    return replace(sample, images=(Image.new('L', (6, 4)),))\n"
    )
    assert not shown(f"{mine}:black", sample()).any()
    with pytest.raises(ConfigError, match="mine.py:Image': expected a function, got <module"):
        find_change(f"{mine}:Image")
    with pytest.raises(ConfigError, match="has no 'blak', did you mean black"):
        find_change(f"{mine}:blak")
    assert label(f"{mine}:black") == "mine-black" and label("blur:2.5") == "blur-2.5" and label("blank") == "blank"


def test_further_images_keep_their_pixels() -> None:
    """Regions lie on image 0."""
    lent = lending([sample(images=(noise(5, 5, "L"),))], 1)
    other, given_ = noise(9, 9, "L"), dataclasses.replace(lent, outlined={"s": (CORNER,)})
    two = sample(images=(GREY, other), objects=(SegmentedObject("obj1", CORNER, in_reasoning=True),))
    of_all = {"blank", "wrong_image", "flip", "blur"}
    arguments = {"blur": ":2", "erased": ":67"}
    for name in INTERVENTIONS:
        change: Change = find_change(name + arguments.get(name, ""), given_)
        first, second = map(np.asarray, change(two).images)
        assert first.shape == VALUES.shape and (first != VALUES).any(), name
        assert (second != np.asarray(other)).any() == (name in of_all), name
