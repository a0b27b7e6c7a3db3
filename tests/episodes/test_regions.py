"""Boxes and masks: geometry that must hold for any of them, and refusals of what is not one."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vitar_jax.episodes.regions import (
    FRAMES,
    Box,
    Mask,
    bounding_box,
    centre,
    clip,
    declared,
    inside,
    iou,
    region_from_json,
    region_to_json,
    to_frame,
)

coordinate = st.floats(-500, 1500)
extent = st.floats(0.1, 800)
size = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
frame = st.sampled_from(FRAMES)


@st.composite
def boxes(draw, frames=frame):
    x, y = draw(coordinate), draw(coordinate)
    return Box(x, y, x + draw(extent), y + draw(extent), draw(frames))


@given(boxes(), frame, size, size)
def test_changing_the_frame_and_back_changes_nothing(box, frame, original, model_input):
    there = to_frame(box, frame, original, model_input)
    back = to_frame(there, box.frame, original, model_input)
    assert there.frame == frame
    assert back.frame == box.frame
    assert back.xyxy == pytest.approx(box.xyxy, rel=1e-6, abs=1e-6)


@given(boxes(), frame, frame, size, size)
def test_changing_the_frame_by_way_of_another_is_the_same(box, by, frame, original, model_input):
    directly = to_frame(box, frame, original, model_input)
    around = to_frame(to_frame(box, by, original, model_input), frame, original, model_input)
    assert around.xyxy == pytest.approx(directly.xyxy, rel=1e-6, abs=1e-6)


def test_frames_by_hand():
    box = Box(100, 50, 300, 100, "original")
    assert to_frame(box, "model_input", (400, 200), (84, 56)) == Box(21, 14, 63, 28, "model_input")
    assert to_frame(box, "normalized", (400, 200), (84, 56)) == Box(0.25, 0.25, 0.75, 0.5, "normalized")


@given(boxes(st.just("original")), boxes(st.just("original")), frame, size, size)
def test_iou_is_symmetric_and_the_same_in_every_frame(a, b, frame, original, model_input):
    value = iou(a, b)
    assert 0 <= value <= 1
    assert value == iou(b, a)
    moved = (to_frame(box, frame, original, model_input) for box in (a, b))
    assert iou(*moved) == pytest.approx(value, rel=1e-5, abs=1e-9)


@given(boxes())
def test_iou_with_itself_is_one(box):
    assert iou(box, box) == pytest.approx(1)


def test_iou_by_hand():
    a, b = Box(0, 0, 2, 2, "original"), Box(1, 1, 3, 3, "original")
    assert iou(a, b) == pytest.approx(1 / 7)
    assert iou(a, Box(2, 0, 4, 2, "original")) == 0  # they only touch


@given(boxes(), size)
def test_a_clipped_box_lies_inside_and_clips_to_itself(box, size):
    apart = box.x2 <= 0 or box.y2 <= 0 or box.x1 >= size[0] or box.y1 >= size[1]
    if apart:
        with pytest.raises(ValueError, match="outside"):
            clip(box, size)
        return
    clipped = clip(box, size)
    assert 0 <= clipped.x1 < clipped.x2 <= size[0]
    assert 0 <= clipped.y1 < clipped.y2 <= size[1]
    assert clip(clipped, size) == clipped
    assert clipped.area <= box.area * (1 + 1e-9)


@pytest.mark.parametrize(
    ("unit", "numbers", "pixels"),
    [
        ("", (2, 3, 20, 30), (2, 3, 20, 30)),
        ("", (0, 0, 2.1, 1), (0, 0, 2.1, 1)),
        ("pixels", (0, 0, 1, 1), (0, 0, 1, 1)),
        ("normalized", (0.25, 0.5, 0.75, 1), (50, 50, 150, 100)),
        ("1000", (250, 500, 750, 1000), (50, 50, 150, 100)),
    ],
)
def test_a_box_is_in_the_unit_that_is_declared(unit, numbers, pixels):
    assert inside(declared(Box(*numbers, "original"), unit), (200, 100)) == Box(*pixels, "original")


@pytest.mark.parametrize("numbers", [(0.6, 0.6, 0.8, 0.8), (0, 0, 1, 1), (-0.1, 0, 0.2, 1.5), (0.8, 0.8, 1.75, 1.75)])
def test_shares_are_not_taken_for_pixels(numbers):
    with pytest.raises(ValueError, match="--boxes"):
        declared(Box(*numbers, "original"), "")
    normalized = Box(*numbers, "normalized")
    assert declared(normalized, "") == declared(normalized, "1000") == normalized  # its frame has been declared


@pytest.mark.parametrize("edge", range(4))
def test_rounding_may_move_an_edge_by_half_a_pixel_out_of_the_image(edge):
    whole = [0.0, 0.0, 200.0, 100.0]
    near, far = list(whole), list(whole)
    near[edge] += 0.5 if edge > 1 else -0.5
    far[edge] += 0.6 if edge > 1 else -0.6
    assert inside(Box(*near, "original"), (200, 100)) == Box(*whole, "original")
    with pytest.raises(ValueError, match="within the image of size 200 x 100"):
        inside(Box(*far, "original"), (200, 100))


@given(boxes())
def test_the_centre_is_as_far_from_every_side(box):
    x, y = centre(box)
    assert x - box.x1 == pytest.approx(box.x2 - x, abs=1e-6)
    assert y - box.y1 == pytest.approx(box.y2 - y, abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (2, 0, 1, 1),
        (0, math.nan, 1, 1),
        (0, 0, math.inf, 1),
        (-math.inf, 0, 1, 1),
    ],
)
def test_what_is_not_a_box_is_refused(values):
    with pytest.raises(ValueError, match="box"):
        Box(*values, "original")


def test_frames_and_sizes_are_checked():
    box = Box(0, 0, 1, 1, "original")
    with pytest.raises(ValueError, match="frame: got 'pixels'"):
        Box(0, 0, 1, 1, "pixels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frame: got 'pixels'"):
        to_frame(box, "pixels", (1, 1), (1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected positive"):
        to_frame(box, "model_input", (0, 5), (1, 1))
    with pytest.raises(ValueError, match="expected positive"):
        clip(box, (1, 0))
    with pytest.raises(ValueError, match="in frames 'original' and 'normalized'"):
        iou(box, Box(0, 0, 1, 1, "normalized"))


# Masks

masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks)
def test_a_mask_is_its_array_again(array):
    mask = Mask.of(array, "original")
    assert np.array_equal(mask.array, array) and mask.area == array.sum()
    assert region_from_json(json.loads(json.dumps(region_to_json(mask)))) == mask
    if array.any():
        box = mask.box
        y, x = np.nonzero(array)
        assert box.xyxy == (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert bounding_box(mask) == box and bounding_box(box) == box
    else:
        with pytest.raises(ValueError, match="empty mask"):
            _ = mask.box


def test_run_lengths_are_those_of_coco():
    """By hand, after COCO's mask API: 5 bits per character from the lowest on, 32 if more follow, 48 added to each."""
    array = np.zeros((9, 12), bool)
    array[2:7, 3:9] = True
    array[4, 5] = False
    mask = Mask.of(array, "original")  # runs 29 5 4 5 4 2 1 2 4 5 4 5 4 5 29, from the fourth on less the run two before
    assert mask.counts == b"m05400MM0330000i0"
    assert np.array_equal(Mask((9, 12), "original", b"m05400MM0330000i0").array, array)
    runs = [29, 5, 4, 5, 4, 2, 1, 2, 4, 5, 4, 5, 4, 5, 29]
    for counts in ("m05400MM0330000i0", runs):
        assert Mask.from_coco({"size": [9, 12], "counts": counts}) == mask


@pytest.mark.parametrize(
    "value",
    [
        *(None, "m0", {"size": [9, 12]}, {"counts": "m0"}, {"size": 9, "counts": "m0"}, {"size": [9, 12], "counts": "é"}),
        *({"size": [9, 12], "counts": [108, 1]}, {"size": [9, 12], "counts": "m"}, {"size": [9, 12], "counts": None}),
        *({"size": [9, 12], "counts": [float("inf")]}, {"size": [-9, -12], "counts": [108]}, {"size": [9, 12], "counts": "~~"}),
    ],
)
def test_what_is_no_mask_of_coco_is_refused(value):
    with pytest.raises(ValueError):
        Mask.from_coco(value)


def test_a_normalised_mask_covers_the_image():
    array = np.zeros((4, 8), bool)
    array[1:3, 2:4] = True
    mask = Mask.of(array, "normalized")
    assert mask.box == Box(0.25, 0.25, 0.5, 0.75, "normalized") and mask.area == 4 / 32


@pytest.mark.parametrize(
    "shape, frame, counts",
    [((2, 2), "original", b"5"), ((0, 2), "original", b""), ((2, 2), "elsewhere", b"4"), ((2, 2), "original", b"P")],
)
def test_what_is_no_mask_is_refused(shape, frame, counts):
    with pytest.raises(ValueError):
        Mask(shape, frame, counts)


@pytest.mark.parametrize(
    "value", [None, 7, [1, 2, 3], [3, 2, 1, 4], {"shape": [2, 2]}, {"shape": 2, "frame": "original", "counts": "4"}]
)
def test_what_is_no_region_is_refused(value):
    with pytest.raises(ValueError, match="expected a box"):
        region_from_json(value)


@given(boxes())
def test_a_box_goes_through_json(box):
    assert region_from_json(json.loads(json.dumps(region_to_json(box)))) == box
