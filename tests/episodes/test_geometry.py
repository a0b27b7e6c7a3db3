"""Where boxes on edited images lie on the sample's own: whatever tool made the image, in a process that never loaded it."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.episodes.affine import IDENTITY, Affine
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import TOOLS, Boxes, Context, Observation, tool
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import JSONL, TrajectoryWriter, read_trajectories

PROCESSOR = tiny.processor(4, 12, 40)
IMAGE = noise(168, 112, seed=4)
TARGET = (28.0, 28.0, 84.0, 84.0)  # of IMAGE

coefficients = st.floats(-9, 9)
affines = st.tuples(*[coefficients] * 6).filter(lambda c: abs(c[0] * c[4] - c[1] * c[3]) > 0.1).map(lambda c: Affine(*c))
points = st.tuples(st.floats(-999, 999), st.floats(-999, 999))


@pytest.fixture(autouse=True)
def own_tools() -> Iterator[None]:
    """A user's tools, gone after the test."""
    with patch.dict(TOOLS):

        @tool("mirror", "Swaps left and right.")
        def mirror(context: Context) -> Observation:
            flipped = context.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return Observation(flipped, to_source=Affine(a=-1, c=context.image.width))

        @tool("turn", "Turns to the left.")
        def turn(context: Context) -> Observation:
            turned = context.image.transpose(Image.Transpose.ROTATE_90)
            return Observation(turned, to_source=Affine(a=0, b=-1, c=context.image.width, d=1, e=0))

        @tool("margin", "Cuts off the margin.", box=Boxes(1))
        def margin(context: Context) -> Observation:
            left, upper, right, lower = (round(edge) for edge in context.boxes[0].xyxy)
            return Observation(context.image.crop((left, upper, right, lower)), to_source=Affine(c=left, f=upper))

        @tool("histogram", "Draws a histogram.")
        def histogram(context: Context) -> Observation:
            return Observation(noise(84, 84), text="mostly dark")

        @tool("measure", "Measures.")
        def measure(context: Context) -> Observation:
            return Observation(text="56 px")

        yield


def play(*texts: str) -> Episode:
    protocol = dataclasses.replace(PROTOCOLS["vitar"], system="Look.", tools=tuple(TOOLS), max_turns=9, observation="See.")
    sample = Sample("s", "Which?", (IMAGE,), "A", boxes=(Box(*TARGET, "original"),))
    played = Episode(sample, protocol, PROCESSOR, Limits(tokens=3000, turn_tokens=500, images=6))
    for text in texts:
        played.add_turn([*PROCESSOR.chat.text(text), PROCESSOR.chat.im_end], None)
    return played


def record(played: Episode) -> Trajectory:
    return played.trajectory(stream="on_policy", policy_version=0, banned_sha256="")


def look(image: int, *edges: float) -> str:
    return write_turn("spot", "mark", box=[list(edges)], image=image)


@given(affines, affines, points)
def test_maps_follow_one_another_and_back(first: Affine, second: Affine, point: tuple[float, float]) -> None:
    expected = second.point(*first.point(*point))
    assert second.after(first).point(*point) == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert first.inverse().point(*first.point(*point)) == pytest.approx(point, rel=1e-6, abs=1e-4)
    assert IDENTITY.after(first) == first


@pytest.mark.parametrize("values", [(0, 0, 0, 0, 0, 0), (1, 2, 0, 2, 4, 0), (float("nan"),), (1, 0, float("inf"))])
def test_a_map_without_inverse_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        Affine(*values)


@pytest.mark.parametrize(
    "edit, edges",
    [
        (write_turn("", "mirror"), (84, 28, 140, 84)),
        (write_turn("", "turn"), (28, 84, 84, 140)),
        (write_turn("", "margin", box=[[14, 14, 126, 98]]), (14, 14, 70, 70)),
        (write_turn("", "zoom", box=[[14, 14, 98, 98]]), (56 / 3, 56 / 3, 280 / 3, 280 / 3)),
        (write_turn("", "window", centre=100, width=50), (28, 28, 84, 84)),
        (look(0, 0, 0, 50, 50), (28, 28, 84, 84)),
    ],
)
def test_a_box_on_an_edited_image_shows_the_same_pixels_of_the_first(edit: str, edges: tuple[float, ...]) -> None:
    """And the gold box lies there on the edited image. Edges are in pixels of the edited image as the model sees it."""
    played = play(edit, look(1, *edges))
    assert [turn.error for turn in played.turns] == [None, None]
    seen = record(played)
    index, (box,) = seen.looked_at(seen.turns[1])
    assert index == 0
    (gold,) = seen.boxes_on(1, 0, seen.boxes)
    assert seen.boxes_on(0, 0, seen.boxes) == seen.boxes
    # What the gold box holds of the edited image is, once the edit is undone, what it holds of the first.
    held = seen.images[1].pixels.crop(tuple(map(round, gold.xyxy)))
    there = IMAGE.crop(tuple(map(round, TARGET)))
    undone = {
        "mirror": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "turn": lambda image: image.transpose(Image.Transpose.ROTATE_270),
        "margin": lambda image: image,
    }.get(seen.turns[0].call.name)
    if undone:
        assert undone(held).tobytes() == there.tobytes()
    assert box.xyxy == pytest.approx(seen.to_base(1)[1].box(seen.turns[1].boxes_original[0]))
    assert box.xyxy == pytest.approx(TARGET, abs=2)


def test_edits_of_edits_are_followed_and_a_plot_is_not() -> None:
    played = play(write_turn("", "mirror"), write_turn("", "margin", box=[[28, 14, 140, 98]], image=1), look(2, 0, 0, 28, 28))
    seen = record(played)
    assert seen.looked_at(seen.turns[2]) == (0, (Box(168 - 28 - 28, 14, 168 - 28, 42, "original"),))
    assert seen.first_look is not None and seen.first_look.turn == 1
    plotted = record(play(write_turn("", "histogram"), look(1, 0, 0, 56, 56)))
    assert plotted.images[1].source == 0
    assert plotted.looked_at(plotted.turns[1])[0] == 1 and plotted.boxes_on(1, 0, plotted.boxes) == ()


def test_a_tool_may_return_text() -> None:
    played = play(write_turn("", "measure"))
    assert played.turns[0].error is None and played.turns[0].image is None and len(played.images) == 1
    assert PROCESSOR.chat.decode(played.token_ids[played.turns[0].end :]).count("56 px") == 1
    both = play(write_turn("", "histogram"))
    assert "See.\nmostly dark" in PROCESSOR.chat.decode(both.token_ids[both.turns[0].end :])
    assert both.turns[0].image == 1


def test_a_record_reads_the_same_in_a_process_without_the_tool(tmp_path: Path) -> None:
    written = record(play(write_turn("", "mirror"), look(1, *TARGET)))
    TrajectoryWriter(tmp_path).write([written])
    code = f"""
from pathlib import Path
from vitar_jax.episodes.tools import TOOLS
from vitar_jax.episodes.trajectory_files import read_trajectories
assert "mirror" not in TOOLS
(read,) = read_trajectories(Path({str(tmp_path)!r}))
print(read.looked_at(read.turns[1]), read.turns[0].call)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == f"{written.looked_at(written.turns[1])} {written.turns[0].call}"


def test_a_record_from_before_images_told_how_they_were_made(tmp_path: Path) -> None:
    """The built-in tools' geometry is inferred from the action."""
    actions = (
        write_turn("", "zoom", box=[[42, 14, 126, 98]]),
        write_turn("", "window", centre=100, width=50, image=1),
        look(2, 28, 28, 84, 84),
    )
    written = record(play(*actions))
    TrajectoryWriter(tmp_path).write([written])
    path = tmp_path / JSONL
    line = json.loads(path.read_text())
    for image in line["images"]:
        del image["source"], image["to_source"]
    for turn in line["turns"]:
        del turn["call"]
    path.write_text(json.dumps(line) + "\n")
    (read,) = read_trajectories(tmp_path)
    assert [(i.source, i.to_source) for i in read.images] == [(i.source, i.to_source) for i in written.images]
    assert all(read.looked_at(turn) == written.looked_at(turn) for turn in read.turns if turn.carried_out)
    assert np.array_equal(read.images[1].pixels, written.images[1].pixels)
