"""A viewer's tools: windows of CT values, contrast, inversion, rotation with its boxes, and a ruler, in an episode."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.kit import tiny
from tests.kit.images import dicom, noise
from vitar_jax.data.interventions import find_change
from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.affine import IDENTITY, Affine
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import CT_WINDOWS, Context, Observation, Original, invert, rotate, ruler
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.processing.equalise import clahe
from vitar_jax.processing.hounsfield import windowed

PROCESSOR = tiny.processor(4, 12)
VIEWER = dataclasses.replace(PROTOCOLS["viewer"], system="Look.")
VALUES = np.add.outer(np.linspace(-1000, 900, 84), np.linspace(-100, 100, 112)).astype(np.int16)
CT: dict[str, Any] = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "PixelSpacing": [0.5, 0.25]}
RIGHT = write_turn("It is.", "Terminate", answer="A")


@pytest.fixture
def scan(tmp_path: Path) -> str:
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(VALUES, **CT))
    return str(path)


def play(sample: Sample, *texts: str) -> Episode:
    played = Episode(sample, VIEWER, PROCESSOR, Limits(tokens=3000, turn_tokens=500, images=6))
    for text in texts:
        played.add_turn([*PROCESSOR.chat.text(text), PROCESSOR.chat.im_end], None)
    return played


def question(image: Image.Image | str, **more: Any) -> Sample:
    return Sample("s", "Which?", (image,), "A", **more)


def record(played: Episode) -> Trajectory:
    return played.trajectory(stream="on_policy", policy_version=0, banned_sha256="")


def look(name: str, image: int = 0, **arguments: Any) -> str:
    return VIEWER.write("So.", ToolCall(name, image=image, arguments=arguments))


# --- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", CT_WINDOWS)
def test_a_window_shows_the_values_of_the_file_and_not_the_first_view(scan: str, preset: str) -> None:
    played = play(question(scan), look("ct_window", preset=preset))
    made = played.images[1]
    assert played.turns[0].error is None and played.turns[0].image == 1
    assert made.pixels.tobytes() == windowed(VALUES.astype(np.float32), *CT_WINDOWS[preset]).tobytes()
    assert (made.source, made.to_source) == (0, IDENTITY)
    in_memory = play(question(Image.fromarray(VALUES.astype(np.float32))), look("ct_window", preset=preset))
    assert in_memory.images[1].pixels.tobytes() == made.pixels.tobytes()
    # The first view has fewer values inside of the window than the file.
    low, high = (CT_WINDOWS[preset][0] + side * CT_WINDOWS[preset][1] / 2 for side in (-1, 1))
    inside = (low < VALUES) & (high > VALUES)
    assert len(np.unique(np.asarray(played.images[0].pixels)[inside])) < len(np.unique(VALUES[inside]))


def test_a_window_of_an_edited_image_shows_the_same_part_of_its_original(scan: str) -> None:
    box = (28.0, 14.0, 84.0, 70.0)
    zoom = write_turn("", "zoom", box=[list(box)])
    played = play(question(scan), zoom, look("ct_window", 1, preset="bone"), look("rotate", 2, degrees=90))
    assert [turn.error for turn in played.turns] == [None] * 3
    whole = windowed(VALUES.astype(np.float32), *CT_WINDOWS["bone"])
    size = played.images[1].pixels.size
    expected = np.asarray(whole.resize(size, Image.Resampling.BICUBIC, box=box), int)
    got = np.asarray(played.images[2].pixels, int)
    assert np.abs(got - expected)[2:-2, 2:-2].max() <= 2  # `resize` has its own bicubic weights
    base, to_base = record(played).to_base(3)
    assert base == 0 and to_base.box((0, 0, *played.images[3].pixels.size)) == pytest.approx(box)


@pytest.mark.parametrize("change", ["", "blank", "region_erased", "flip"])
def test_an_image_of_8_bits_has_no_window(scan: str, change: str) -> None:
    """So that a change of the sample cannot be undone by a look at its file."""
    sample = question(scan if change else noise(112, 84), boxes=(Box(20, 20, 60, 60, "original"),))
    played = play(find_change(change)(sample) if change else sample, look("ct_window", preset="lung"), RIGHT)
    assert played.turns[0].error is not None and played.turns[0].error[0] == "no_values"
    assert played.end_reason == "answered"


def test_a_preset_that_does_not_exist_is_an_error_of_the_turn(scan: str) -> None:
    played = play(question(scan), write_turn("", "ct_window", preset="liver"))
    assert played.turns[0].error == ("bad_text", "preset is one of lung, bone, brain, soft tissue.")


# --- contrast and rotation ----------------------------------------------------------------------


def run(tool: Any, image: Image.Image, *boxes: Box, **arguments: Any) -> Observation:
    made = tool(Context(image, boxes, view_pixels=5000), **arguments)
    assert isinstance(made, Observation)
    return made


def test_contrast_and_inversion_keep_every_pixel_in_its_place() -> None:
    for image in (noise(50, 40), noise(50, 40, "L")):
        inverted = run(invert, image)
        assert inverted.image and inverted.image.tobytes() == ImageOps.invert(image).tobytes()
        assert inverted.to_source == IDENTITY and run(invert, inverted.image).image == image
        played = play(question(image), look("clahe"), look("invert", 1))
        assert [turn.error for turn in played.turns] == [None, None]
        assert played.images[2].pixels == ImageOps.invert(clahe(image))
        assert record(played).to_base(2) == (0, IDENTITY)


@pytest.mark.parametrize(
    "degrees, turn",
    [(90, Image.Transpose.ROTATE_270), (180, Image.Transpose.ROTATE_180), (-90, Image.Transpose.ROTATE_90), (0, None)],
)
def test_quarter_turns_are_clockwise_and_exact(degrees: float, turn: Image.Transpose | None) -> None:
    image = noise(50, 40)
    assert run(rotate, image, degrees=degrees).image == (image if turn is None else image.transpose(turn))


@given(st.floats(-180, 180), st.integers(0, 99), st.integers(0, 79))
@settings(max_examples=30)
def test_a_pixel_lies_where_the_map_of_its_rotation_says(degrees: float, x: int, y: int) -> None:
    """Beside PIL's own rotation, and a bright spot that is found again."""
    image = Image.new("L", (100, 80))
    image.paste(255, (x, y, min(x + 3, 100), min(y + 3, 80)))
    made = run(rotate, image, degrees=degrees)
    assert made.image and made.to_source
    assert np.abs(np.subtract(made.image.size, image.rotate(-degrees, expand=True).size)).max() <= 2
    shares = np.asarray(made.image, float)
    assert shares.sum() > 0
    rows, columns = (np.indices(shares.shape) + 0.5) * shares / shares.sum()
    centre = made.to_source.point(columns.sum(), rows.sum())
    assert centre == pytest.approx(((x + min(x + 3, 100)) / 2, (y + min(y + 3, 80)) / 2), abs=0.6)


def test_boxes_follow_a_rotation() -> None:
    """A box on the rotated image is one around the same pixels of the original, and the gold box lies there again."""
    gold = Box(14, 28, 56, 70, "original")
    zoom = write_turn("", "zoom", box=[[0, 28, 42, 84]], image=1)
    played = play(question(noise(112, 84), boxes=(gold,)), look("rotate", degrees=90), zoom)
    seen = record(played)
    assert played.images[1].pixels.size == (84, 112) and played.turns[1].error is None
    assert seen.first_look is not None and seen.first_look.boxes[0].xyxy == pytest.approx((28, 42, 84, 84))
    assert seen.boxes_on(1, 0, (gold,))[0].xyxy == pytest.approx((14, 14, 56, 56))


# --- the ruler ----------------------------------------------------------------------------------


def measured(original: Image.Image | str | None, box: tuple[float, ...], part: Affine = IDENTITY) -> str:
    boxes = (Box(*box, frame="original"),)  # type: ignore[call-arg]
    made = ruler(Context(noise(112, 84), boxes, 5000, original=Original(original, part) if original else None))
    return made.message if isinstance(made, ActionError) else made.text


def test_a_ruler_answers_in_mm_where_the_file_states_them(scan: str) -> None:
    """Pixels are 0.5 mm high and 0.25 mm wide."""
    assert measured(scan, (10, 20, 50, 40)) == "Width 10.0 mm, height 10.0 mm, diagonal 14.1 mm."
    assert measured(scan, (10, 20, 50, 20.5)) == "Width 10.0 mm, height 0.2 mm, diagonal 10.0 mm."
    assert measured(noise(9, 9), (10, 20, 50, 50)) == "Width 40.0 px, height 30.0 px, diagonal 50.0 px."
    assert measured(None, (10, 20, 50, 50)) == "Width 40.0 px, height 30.0 px, diagonal 50.0 px."
    assert measured(scan, (10, 20, 50, 85)) == "A box lies outside the image."


def test_a_ruler_measures_the_original_through_edits(scan: str) -> None:
    twice = Affine(a=0.5, e=0.5)
    assert measured(scan, (0, 0, 80, 40), twice) == "Width 10.0 mm, height 10.0 mm, diagonal 14.1 mm."
    turned, _ = Affine.rotation(90, (112, 84))
    assert measured(scan, (0, 0, 20, 40), turned) == "Width 10.0 mm, height 10.0 mm, diagonal 14.1 mm."


@pytest.mark.parametrize(
    "elements, text",
    [
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.5, 0.25]}, "14.1 mm at the detector, more than in the patient."),
        ({"PixelSpacing": None}, "diagonal 44.7 px."),
        ({"PixelSpacing": [0.5, -1]}, "The image states a damaged size of its pixels."),
    ],
)
def test_a_ruler_says_what_its_unit_is_worth(tmp_path: Path, elements: dict[str, Any], text: str) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom(VALUES, **CT | elements))
    assert measured(str(path), (10, 20, 50, 40)).endswith(text)


def test_an_episode_shows_the_text_of_a_ruler_and_no_image(scan: str) -> None:
    played = play(question(scan), write_turn("", "ruler", box=[[10, 20, 50, 40]]), RIGHT)
    assert len(played.images) == 1 and played.turns[0].error is None
    assert "Width 10.0 mm, height 10.0 mm" in PROCESSOR.chat.decode(played.token_ids)
    assert played.turns[0].carried_out


# --- protocol, writer and report ----------------------------------------------------------------


def test_every_tool_is_told_written_and_read() -> None:
    system = PROTOCOLS["viewer"].system_text()
    calls = [
        ToolCall("ct_window", (), 2, {"preset": "soft tissue"}),
        ToolCall("clahe"),
        ToolCall("invert", image=1),
        ToolCall("rotate", arguments={"degrees": -12.5}),
        ToolCall("ruler", ((1.0, 2.0, 3.0, 4.0),)),
    ]
    for call in calls:
        assert f'"name": "{call.name}"' in system
        assert VIEWER.read(VIEWER.write("So.", call)).outcome == call
    assert VIEWER.read(RIGHT).outcome == Answer("A")


def test_a_report_shows_the_images_of_a_viewer(scan: str) -> None:
    played = play(question(scan), look("ct_window", preset="lung"), look("rotate", 1, degrees=30), RIGHT)
    assert played.finished
    assert played._repr_html_().count("data:image") == 3
