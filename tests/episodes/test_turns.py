"""What becomes of turns that are no good, and of turns as ViTAR's published code takes them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.episodes import ANSWER, CHAT, LIMITS, PROCESSOR, VITAR, WIDE, check, episode, sample, say, zoom
from tests.kit.images import noise
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS


@pytest.mark.parametrize(
    "text, kind",
    [
        ("upper left", "bad_json"),
        ("", "bad_json"),
        ("{}", "no_action"),
        (write_turn("spot", "zoom"), "box_count"),
        (write_turn("spot", "crop", box=[[0, 0, 50, 50]]), "unknown_tool"),
        (write_turn("spot", "mark_as_published", box=[[0, 0, 50, 50]]), "unknown_tool"),
        (zoom(0, 0, 50, 50, image=1), "bad_image"),
        (zoom(0, 0, 50, 50, image=-1), "bad_image"),
        (zoom(-1, 0, 50, 50), "box_outside"),
        (zoom(0, 0, 50, 5000), "box_outside"),
        (zoom(0, 0, 50, 3), "box_too_small"),
        (zoom(0, 0, 5e-324, 50), "box_too_small"),
        (write_turn("spot", "zoom", box=[[0, 0, 50, 50], [0, 0, 60, 60]]), "box_count"),
    ],
)
def test_a_turn_that_is_no_good_is_answered_with_its_error(text: str, kind: str) -> None:
    played = episode()
    before = len(played.token_ids)
    say(played, text)
    turn = played.turns[0]
    assert turn.error is not None and turn.error[0] == kind
    assert turn.image is None and len(played.images) == 1
    said = CHAT.decode(played.token_ids[turn.end :])
    assert said == f"\n<|im_start|>user\nError: {turn.error[1]}<|im_end|>\n<|im_start|>assistant\n"
    assert turn.start == before and not played.finished
    check(played)
    say(played, ANSWER)
    assert played.end_reason == "answered"


def test_a_box_just_inside_is_no_error() -> None:
    played = episode()
    height, width = played.images[0].size
    say(played, zoom(0, 0, width, height))
    assert played.turns[0].error is None
    assert played.turns[0].boxes_original == ((0, 0, WIDE.width, WIDE.height),)


def test_a_region_of_extreme_shape_is_an_error_and_no_exception() -> None:
    played = episode(noise(1600, 300))
    height, width = played.images[0].size
    # 1600 x 29 of its pixels: more windows than a size class has
    say(played, zoom(0, 0, width, height * 29 / 300))
    assert played.turns[0].error == ("bad_shape", "A region of this shape cannot be shown.")
    check(played)


def test_a_box_that_rounding_empties_is_an_error_and_no_exception() -> None:
    played = episode(noise(50, 40))  # smaller than what the model sees
    height, width = played.images[0].size
    x1 = next(x for x in np.linspace(1.5, 2, 1000) if x * 50 / width == np.nextafter(x, 2) * 50 / width)
    say(played, zoom(float(x1), 0, float(np.nextafter(x1, 2)), height))
    assert played.turns[0].error == ("box_too_small", "A box is empty.")
    check(played)


def test_a_turn_that_is_too_long_is_closed_for_it() -> None:
    played = episode()
    say(played, "upper left", stop=False)
    assert played.turns[0].error == ("too_long", "The turn is too long.")
    follow = played.token_ids[played.turns[0].end :]
    assert follow[0] == CHAT.im_end and CHAT.decode(follow).endswith("<|im_start|>assistant\n")
    check(played)


def test_a_turn_that_is_too_long_may_end_the_episode() -> None:
    played = Episode(sample(WIDE), dataclasses.replace(VITAR, too_long_ends=True), PROCESSOR, LIMITS)
    say(played, "upper left", stop=False)
    assert (played.end_reason, played.turns[0].error) == ("too_long", ("too_long", "The turn is too long."))
    assert played.turns[0].end == len(played.token_ids)
    check(played)


def test_an_answer_may_have_to_wait_for_the_last_turn() -> None:
    played = Episode(sample(WIDE), dataclasses.replace(VITAR, early_answer=False), PROCESSOR, LIMITS)
    for _ in range(VITAR.max_turns - 1):
        say(played, ANSWER)
        assert played.turns[-1].error == ("too_early", "It is too early to answer.")
        assert not played.finished and played.predicted_answer is None
    say(played, ANSWER)
    assert (played.end_reason, played.predicted_answer) == ("answered", "A")
    played.ask("And where?")
    say(played, ANSWER)
    assert played.turns[-1].error == ("too_early", "It is too early to answer.")
    check(played)


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_there_are_as_many_looks_as_the_protocol_has_turns(turns: int) -> None:
    protocol = dataclasses.replace(VITAR, max_turns=turns)
    played = Episode(sample(WIDE), protocol, PROCESSOR, dataclasses.replace(LIMITS, tokens=2000, images=9))
    for count in range(1, turns + 1):
        assert not played.finished
        say(played, zoom(0, 0, 50, 50))
        assert len(played.images) == min(count + 1, turns)
    assert played.end_reason == "turn_limit"
    check(played)


def test_a_cut_answer_is_no_answer() -> None:
    played = episode()
    say(played, ANSWER, stop=False)
    assert played.predicted_answer is None and not played.finished


def test_the_last_turn_ends_the_episode() -> None:
    played = episode()
    for _ in range(VITAR.max_turns):
        assert not played.finished
        say(played, "upper left")
    assert played.end_reason == "turn_limit"
    assert played.turns[-1].end == len(played.token_ids)
    check(played)


def test_markup_that_a_policy_writes_is_no_image() -> None:
    played = episode()
    written = [
        CHAT.vision_start,
        CHAT.image_pad,
        CHAT.image_pad,
        CHAT.vision_end,
        tiny.VOCAB - 1,
        CHAT.im_end,
    ]
    played.add_turn(written, [-1.0] * len(written))
    check(played)
    assert played.turns[0].error is not None
    say(played, zoom(0, 0, 50, 50))
    check(played)


# As ViTAR's published code plays


def published(*images: Image.Image) -> Episode:
    return Episode(sample(*images), PROTOCOLS["vitar_reference"], PROCESSOR, LIMITS)


def test_the_published_protocol_marks_pixels_of_the_image_as_it_came() -> None:
    played = published(WIDE)
    boxes = [[-20, 10, 5, 12], [250, 150, 400, 1e8]]  # outside, and small
    say(played, "I look. " + write_turn("spot", "look_here", box=boxes, image=1))
    turn = played.turns[0]
    assert turn.error is None and turn.boxes_original == tuple(map(tuple, boxes)) and turn.acted_on == 0
    pixels = np.asarray(played.images[1].pixels)
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert red[10:13, :6].all() and red[150:153, 250:].all() and red[150:, 250:253].all()
    assert np.array_equal(pixels[~red], np.asarray(WIDE)[~red])
    # The image stands before the sentence.
    said = CHAT.decode(played.token_ids[turn.end :])
    assert said.endswith(f"<|vision_end|>{played.protocol.observation}<|im_end|>\n<|im_start|>assistant\n")
    say(played, ANSWER)
    assert (played.end_reason, played.predicted_answer) == ("answered", "A")
    check(played)


def test_the_published_protocol_marks_a_grey_image_in_white() -> None:
    played = published(Image.new("L", (100, 100), 9))
    say(played, write_turn("spot", "mark", box=[[20, 20, 60, 60]]))
    assert played.images[1].pixels.mode == "L"
    assert np.unique(played.images[1].pixels, return_counts=True)[1].tolist() == [100**2 - 41**2 + 35**2, 41**2 - 35**2]


def test_the_published_protocol_goes_on_after_an_error_and_not_after_a_cut() -> None:
    played = published(WIDE)
    say(played, write_turn("spot", "mark", box=[20, 20, 60, 60]))
    assert played.turns[0].error is not None and not played.finished
    assert "Error: A box is four numbers" in CHAT.decode(played.token_ids[played.turns[0].end :])
    say(played, write_turn("spot", "mark", box=[[20, 20, 60, 60]]))
    assert played.end_reason == "turn_limit"
    cut = published(WIDE)
    say(cut, ANSWER, stop=False)
    assert (cut.end_reason, cut.predicted_answer) == ("too_long", None)
