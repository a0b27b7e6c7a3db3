"""Traces in two rounds: what is written is read, the turn's own masks are drawn, and a turn without one is an error."""

import dataclasses
import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep.phantom.findings import source
from tests.kit import tiny
from tests.kit.images import noise
from tests.kit.trajectories import ellipse
from tests.kit.vrt import chat
from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.mask_drawing import COLOURS, object_colours, outlined
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.outline_parser import parse_outline, write_outline
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Mask
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import OUTLINE_WIDTH
from vitar_jax.errors import DataError
from vitar_jax.processing.processor import Processor

OUTLINE = PROTOCOLS["outline"]
LIMITS = Limits(tokens=4000, turn_tokens=500)
SAMPLE = source("train", seed=1, outline=True)[0]
MARKS = ("<think>", "</think>", "<answer>", "</answer>", "<action>", "</action>", "[SEG]")
FIRST = "<think>A nodule (<ver><obj1> [SEG]</ver>) and one (<ver><obj2> [SEG]</ver>).</think>\n\n<action>outline</action>"
LAST = "<think>Yes.</think>\n\n<answer>The nodule (<vea><obj1> [SEG]</vea>).</answer>"


def processor() -> Processor:
    return dataclasses.replace(tiny.processor(4, 12), chat=chat())


def begun(image: Image.Image) -> Episode:
    return Episode(Sample("s", "Where?", (image,), "The nodule."), OUTLINE, processor(), LIMITS)


def say(episode: Episode, text: str, *masks: Mask) -> None:
    token_ids = chat().turn(text, OUTLINE.allowed_tokens)
    episode.add_turn(token_ids, [-0.5] * len(token_ids), masks=[(mask, 0.75) for mask in masks])


# The form


WORDS = ["a", " ", "\n", "<", ">", "(", "<obj1>", "<ver>", "</vea>", "<act>", "outline", "é"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=30).map("".join).map(str.strip)
OUTCOMES = st.one_of(TEXT.filter(bool).map(Answer), st.sampled_from(["outline", "none:such", "a/b.py:c"]).map(ToolCall))
PIECES = st.lists(st.sampled_from([*MARKS, " ", "outline", "zoom", "<obj1>"]), max_size=12).map("".join)


@given(TEXT, OUTCOMES)
def test_what_is_written_is_read(thought, outcome):
    read = parse_outline(write_outline(thought, outcome))
    assert (read.thought, read.outcome) == (thought, outcome)


@given(PIECES)
def test_any_text_is_read_and_what_was_read_can_be_written(text):
    read = parse_outline(text)
    thought = read.thought or ""
    if isinstance(read.outcome, Answer | ToolCall) and not any(mark in thought for mark in MARKS):
        if isinstance(read.outcome, Answer) and any(mark in read.outcome.text for mark in MARKS):
            return
        again = parse_outline(write_outline(thought, read.outcome))
        assert (again.thought, again.outcome) == (thought, read.outcome)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<think>a</think>", "no_action"),
        ("<think>a</think><action>outline</action><answer>b</answer>", "second_action"),
        ("<action>two words</action>", "bad_action"),
        ("<action></action>", "bad_action"),
        ("<action>zoom</action>", "box_count"),
        ("<answer> </answer>", "bad_answer"),
    ],
)
def test_what_is_wrong_is_named(text, kind):
    outcome = parse_outline(text).outcome
    assert isinstance(outcome, ActionError) and outcome.kind == kind


@pytest.mark.parametrize("call", [{"name": "zoom"}, {"name": "outline", "image": 1}, {"name": "x y z"}, {"name": "</action>"}])
def test_a_call_with_arguments_is_not_written(call):
    outcome = ToolCall(**call)
    with pytest.raises(DataError, match="expected a call of a tool without boxes"):
        write_outline("a", outcome)
    with pytest.raises(DataError, match="got <action> in a trace's text"):
        write_outline("<action>", Answer("b"))


# The picture


def test_masks_are_outlined_each_object_in_its_colour():
    image = noise(60, 40)
    inner, outer = ellipse(8, 20, 5, 5, (60, 40)), ellipse(22, 20, 18, 15, (60, 40))
    apart = ellipse(50, 30, 6, 6, (60, 40))
    named = [("obj1", inner), ("obj2", outer), ("obj1", apart), (None, None)]
    masks = [ObjectMask(place, name, None, mask, 0.5) for place, (name, mask) in enumerate(named)]
    drawn = np.asarray(outlined(image, masks, 3))
    rows, columns = np.mgrid[:40, :60]
    expected = np.array(image.convert("RGB"))
    for mask, colour in ((outer.array, COLOURS[1]), (inner.array, COLOURS[0]), (apart.array, COLOURS[0])):
        outside = np.argwhere(np.pad(~mask, 1, constant_values=True)) - 1
        # Steps along rows and columns to the nearest pixel that is not of the mask.
        steps = np.min([abs(rows - y) + abs(columns - x) for y, x in outside], axis=0)
        expected[mask & (steps <= 3)] = colour
    np.testing.assert_array_equal(drawn, expected)
    assert object_colours([ObjectMask(n, f"obj{n}") for n in range(9)]) == [*COLOURS, COLOURS[0]]


def test_reports_have_the_same_colours():
    style = (files("vitar_jax.evaluation") / "report_assets" / "report.css").read_text()
    assert tuple(re.findall(r"\.object-\d \{ --object: (#\w{6})", style)) == tuple("#" + bytes(c).hex() for c in COLOURS)


# The episode


def test_a_turns_own_masks_are_drawn_on_an_image_that_is_not_square():
    image = noise(300, 200)  # the model sees it at a smaller size
    made = ellipse(80, 60, 40, 25), ellipse(220, 150, 30, 30)
    episode = begun(image)
    say(episode, FIRST, *made)
    turn = episode.turns[0]
    assert turn.error is None and turn.image == 1 and [one.part for one in turn.masks] == ["reasoning"] * 2
    shown = episode.images[1]
    assert shown.pixels.tobytes() == outlined(image, turn.masks, OUTLINE_WIDTH).tobytes() and shown.pixels.size == (300, 200)
    on_the_outline, within = (41, 60), (80, 60)
    assert shown.pixels.getpixel(on_the_outline) == COLOURS[0]
    assert shown.pixels.getpixel(within) == image.convert("RGB").getpixel(within)
    assert shown.grid_thw == episode.images[0].grid_thw and shown.source == 0
    say(episode, LAST, made[0])
    assert episode.predicted_answer == "The nodule." and episode.turns[1].masks[0].part == "answer"
    record = episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="")
    assert [len(turn.masks) for turn in record.turns] == [2, 1] and episode.example().grids[1] == shown.grid_thw


@pytest.mark.parametrize("masks", [(), (ellipse(-90, -90, 9, 9),)])
def test_a_turn_without_a_pixel_of_a_mask_is_an_error(masks):
    episode = begun(noise(300, 200))
    say(episode, FIRST, *masks)
    assert episode.turns[0].error == ("no_mask", "The turn has no mask on this image.") and len(episode.images) == 1
    assert not episode.finished


def test_masks_are_on_the_first_image_alone():
    twice = dataclasses.replace(OUTLINE, parser="json", max_turns=3, tools=("outline",))
    episode = Episode(Sample("s", "Where?", (noise(300, 200),), "A"), twice, processor(), LIMITS)
    call = '{"thought": "<obj1> [SEG]", "actions": [{"name": "outline", "arguments": {"image": %d}}]}'
    say(episode, call % 0, ellipse(80, 60, 40, 25))
    say(episode, call % 1, ellipse(80, 60, 40, 25))
    assert episode.turns[0].error is None and episode.turns[1].error is not None and episode.turns[1].error[0] == "no_mask"


def test_phantoms_demonstrate_it_with_the_masks_of_the_sample():
    episode = demonstrate(SAMPLE, OUTLINE, processor(), LIMITS)
    first, last = episode.turns
    gold = {one.name: one.mask for one in SAMPLE.objects}
    assert [(one.name, one.mask) for one in first.masks] == list(gold.items())
    picture = episode.images[0].pixels
    assert episode.images[1].pixels.tobytes() == outlined(picture, first.masks, OUTLINE_WIDTH).tobytes()
    assert first.thought == last.thought and episode.end_reason == "answered"
    plain = source("train", seed=1)[0]
    one_turn = demonstrate(SAMPLE, PROTOCOLS["vrt"], processor(), LIMITS)
    assert one_turn.token_ids == demonstrate(plain, PROTOCOLS["vrt"], processor(), LIMITS).token_ids
    with pytest.raises(DataError, match="mentions <obj2>, which has no mask"):
        demonstrate(dataclasses.replace(SAMPLE, objects=SAMPLE.objects[:1]), OUTLINE, processor(), LIMITS)
