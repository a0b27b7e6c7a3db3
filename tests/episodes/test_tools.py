"""Tools: pixels as others compute them, errors where a box or a number is no good, and the arguments they tell of."""

import json
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from tests.kit.images import noise
from vitar_jax.episodes.actions import ActionError, ToolCall
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.tools import (
    MIN_SIDE,
    TOOLS,
    Context,
    Observation,
    Text,
    Tool,
    mark,
    mark_as_published,
    read_call,
    tool,
    window,
    zoom,
)

IMAGE = noise(90, 70, seed=3)
GREY = IMAGE.convert("L")


def box(*edges: float) -> tuple[Box, ...]:
    return (Box(*edges, frame="original"),)


def run(tool: Tool, image: Image.Image, boxes: tuple[Box, ...] = (), **arguments: Any) -> Image.Image:
    made = tool(Context(image, boxes, view_pixels=5000), **arguments)
    assert isinstance(made, Observation) and made.image
    return made.image


# Boxes


@pytest.mark.parametrize("tool", [mark, zoom])
@pytest.mark.parametrize(
    "edges, kind",
    [
        ((0, 0, 27.9, 60), "box_too_small"),
        ((0, 0, 60, 27.9), "box_too_small"),
        ((-0.1, 0, 60, 60), "box_outside"),
        ((0, 0, 60, 70.1), "box_outside"),
        ((200, 200, 260, 260), "box_outside"),
        ((0, 0, 9e8, 9e8), "box_outside"),
        ((0, 0, MIN_SIDE, MIN_SIDE), None),
        ((0, 0, 90, 70), None),
    ],
)
def test_a_box_has_to_lie_inside_and_be_large_enough(tool: Any, edges: tuple[float, ...], kind: str | None) -> None:
    made = tool(Context(IMAGE, box(*edges), view_pixels=5000))
    assert (made.kind == kind) if isinstance(made, ActionError) else kind is None


edge = st.floats(-60, 160)


@given(st.lists(st.tuples(edge, edge, edge, edge).filter(lambda b: b[0] < b[2] and b[1] < b[3]), min_size=1, max_size=3))
def test_the_published_tool_outlines_any_box_as_pil_does(boxes: list[tuple[float, float, float, float]]) -> None:
    for image, colour in ((IMAGE, (255, 0, 0)), (GREY, 255), (IMAGE.convert("RGBA"), (255, 0, 0, 255))):
        expected = image.copy()
        for one in boxes:
            ImageDraw.Draw(expected).rectangle(one, outline=colour, width=3)
        made = run(mark_as_published, image, tuple(Box(*one, frame="original") for one in boxes))
        assert made.mode == image.mode and made.tobytes() == expected.tobytes()


def test_the_published_tool_converts_what_it_does_not_know_and_walks_no_huge_outline() -> None:
    made = run(mark_as_published, IMAGE.convert("P"), box(-9e8, -9e8, 9e8, 9e8))
    assert made.mode == "RGB" and made.tobytes() == IMAGE.convert("P").convert("RGB").tobytes()


# Window


@given(st.floats(0, 255), st.floats(1, 255))
def test_a_window_is_that_of_dicom(centre: float, width: float) -> None:
    """Beside pydicom: LINEAR_EXACT of PS3.3, C.11.2.1.3.2, from and to eight bits."""
    header = Dataset()
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = centre, width, "LINEAR_EXACT"
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 8, 0
    ramp = np.arange(256, dtype=np.uint8)[None]
    expected = apply_windowing(ramp, header)
    made = np.asarray(run(window, Image.fromarray(ramp), centre=centre, width=width), float)
    assert np.abs(made - expected).max() <= 0.5 + 1e-6


def test_a_window_is_one_for_all_channels() -> None:
    made = run(window, IMAGE, centre=90.5, width=33)
    for ours, channel in zip(made.split(), IMAGE.split(), strict=True):
        assert ours.tobytes() == run(window, channel, centre=90.5, width=33).tobytes()


# Arguments


@pytest.mark.parametrize("name", TOOLS)
def test_a_schema_tells_of_the_arguments_that_are_read(name: str) -> None:
    """A call made of the schema's bounds is read; without any one required argument, or beyond a bound, it is not."""
    told = json.loads(json.dumps(TOOLS[name].schema()))
    assert told["name"] == name and told["description"]
    properties = told["parameters"]["properties"]
    assert properties.keys() == {"image", *told["parameters"]["required"]}
    good = {"image": properties["image"]["minimum"]}
    for key in told["parameters"]["required"]:
        limits = properties[key]
        good[key] = {
            "number": lambda limits: limits["maximum"],
            "array": lambda limits: [[1, 2, 3, 4]] * limits["maxItems"],
            "string": lambda limits: limits["enum"][-1],
        }[limits["type"]](limits)
    assert isinstance(read_call(name, good), ToolCall)
    for key in told["parameters"]["required"]:
        assert isinstance(read_call(name, {k: v for k, v in good.items() if k != key}), ActionError)
        limits = properties[key]
        beyond = {
            "number": lambda limits: [limits["minimum"] - 1, limits["maximum"] + 1],
            "array": lambda limits: [[], [[1, 2, 3, 4]] * (limits["maxItems"] + 1)],
            "string": lambda limits: ["", limits["enum"][0].upper(), limits["enum"], None],
        }[limits["type"]](limits)
        for value in beyond:
            assert isinstance(read_call(name, good | {key: value}), ActionError)


def test_a_tool_that_there_is_not_is_left_to_the_episode() -> None:
    assert read_call("crop", {"box": 7}) == ToolCall("crop")


def test_a_text_is_an_argument_too() -> None:
    with patch.dict(TOOLS):

        @tool("note", "Takes a note.", words=Text(most=5))
        def note(context: Context, *, words: str) -> Observation:
            return Observation(text=words.upper())

        assert note.schema()["parameters"]["properties"]["words"] == {"type": "string", "maxLength": 5}
        assert read_call("note", {"words": "left"}) == ToolCall("note", arguments={"words": "left"})
        for words in ("a lesion", 5, None):
            error = read_call("note", {"words": words})
            assert isinstance(error, ActionError) and error.kind == "bad_text"
        assert note(Context(IMAGE, (), 1), words="left") == Observation(text="LEFT")
