"""Episodes: the record grows in lockstep whatever is written, tools see the original pixels, budgets hold."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.kit import tiny
from tests.kit.episodes import ANSWER, CHAT, LIMITS, PROCESSOR, SMALL, VITAR, WIDE, check, episode, sample, say, zoom
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.regions import FRAMES, Box, Frame
from vitar_jax.episodes.trajectory import LookedAt, Trajectory
from vitar_jax.errors import DataError, ImageError

# A whole episode


def test_an_episode_looks_and_answers() -> None:
    played = episode()
    check(played)
    height, width = played.images[0].size
    assert (width, height) != WIDE.size
    box = (28.0, 14.0, 84.0, 70.0)  # in what the model sees
    say(played, zoom(*box))
    check(played)
    say(played, ANSWER)
    check(played)
    assert played.finished and (played.end_reason, played.predicted_answer) == ("answered", "A")

    look, answer = played.turns
    assert look.boxes_model_input == (box,) and look.error is None and look.image == 1
    scale = WIDE.width / width, WIDE.height / height
    assert look.boxes_original[0] == pytest.approx([v * scale[i % 2] for i, v in enumerate(box)])
    assert (look.thought, look.action and look.action["name"]) == ("spot", "zoom")
    assert (answer.thought, answer.image, answer.text) == ("This is it.", None, ANSWER)
    assert [image.turn for image in played.images] == [None, 0]


def test_a_conversation_goes_on() -> None:
    played = episode()
    say(played, ANSWER)
    played.ask("And its edge?")
    check(played)
    assert not played.finished and played.predicted_answer is None
    (role, contents), *more = VITAR.opening(sample(), [PROCESSOR.tokens(played.images[0].grid_thw)])
    assert (role, "".join(part.text for part in contents)) == ("system", "Look twice.") and len(more) == 1
    second = VITAR.question_message(dataclasses.replace(sample(), question="And its edge?"))
    messages = [("system", ["Look twice."]), *more, ("assistant", [ANSWER]), second]
    assert played.token_ids == CHAT.render(messages, reply=True)
    for _ in range(VITAR.max_turns):  # as many as for the first question
        assert not played.finished
        say(played, "hm", stop=False)
    assert played.end_reason == "turn_limit"
    played.ask("Why?")
    assert played.token_ids[played.turns[-1].end] == CHAT.im_end
    say(played, zoom(28, 14, 84, 70))
    say(played, ANSWER)
    check(played)
    assert played.end_reason == "answered" and [image.turn for image in played.images] == [None, 4]
    played.ask("why " * 1000)
    check(played)
    assert played.end_reason == "overflow"


def test_the_tokens_are_the_chat_of_the_whole() -> None:
    played = episode(WIDE, SMALL)
    counts = [PROCESSOR.tokens(image.grid_thw) for image in played.images]
    question = "Which texture is it?\nOptions:\nA flat\nB rows"
    messages = [("system", ["Look twice."]), ("user", [*counts, question])]
    assert played.token_ids == CHAT.render(messages, reply=True)
    say(played, zoom(0, 0, 50, 50))
    count = PROCESSOR.tokens(played.images[2].grid_thw)
    messages += [("assistant", [zoom(0, 0, 50, 50)]), ("user", [count, VITAR.observation])]
    assert played.token_ids == CHAT.render(messages, reply=True)


def test_a_turn_that_was_put_in_its_mouth_is_not_learnt() -> None:
    played = episode()
    played.add_turn([*CHAT.text(zoom(0, 0, 50, 50)), CHAT.im_end], None, learn=False)
    assert not any(played.loss_mask) and set(played.logprobs) == {None}
    say(played, ANSWER)
    assert sum(played.loss_mask) == played.turns[1].end - played.turns[1].start


# Tools


def test_zoom_cuts_the_original_pixels() -> None:
    played = episode()
    height, width = played.images[0].size
    box = (28, 14, 84, 70)
    say(played, zoom(*box))
    original = played.turns[0].boxes_original[0]
    shown = played.images[1].pixels
    # As if the box had been cut out first; at its edges, bicubic sees a little of what lies around it.
    cut = WIDE.crop(tuple(round(value) for value in original)).resize(shown.size, Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(shown, float) - np.asarray(cut, float))
    assert np.corrcoef(np.asarray(shown, float).ravel(), np.asarray(cut, float).ravel())[0, 1] > 0.9
    assert np.median(difference) < 25
    exact = WIDE.resize(shown.size, Image.Resampling.BICUBIC, box=original)
    assert np.array_equal(shown, exact)
    # About as large as what the model sees of the whole, in the shape of the box.
    assert shown.width * shown.height == pytest.approx(width * height, rel=0.05)
    aspect = (original[2] - original[0]) / (original[3] - original[1])
    assert shown.width / shown.height == pytest.approx(aspect, rel=0.05)


def test_zoom_shows_more_than_the_model_saw() -> None:
    """Fine stripes that vanish when the whole image is made small are there in a zoomed region."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (400, 300)).reshape(400, 600))
    played = episode(stripes)
    height, width = played.images[0].size
    assert width * 3 < 600
    say(played, zoom(0, 0, 28, 28))
    whole = np.asarray(stripes.resize((width, height), Image.Resampling.BICUBIC), float)
    assert np.asarray(played.images[1].pixels, float).std() > 3 * whole.std()


def test_mark_outlines_a_box_on_the_whole_image() -> None:
    played = episode()
    say(played, write_turn("spot", "mark", box=[[28, 14, 84, 70], [0, 0, 30, 30]]))
    marked = WIDE.copy()
    for box in played.turns[0].boxes_original:
        ImageDraw.Draw(marked).rectangle(box, outline=(255, 0, 0), width=3)
    assert np.array_equal(played.images[1].pixels, marked)
    assert not np.array_equal(marked, WIDE) and played.images[0].pixels.tobytes() == WIDE.tobytes()


def test_a_grey_image_is_marked_in_red() -> None:
    played = episode(WIDE.convert("L"))
    say(played, write_turn("spot", "mark", box=[[28, 14, 84, 70]]))
    assert played.images[1].pixels.mode == "RGB"
    assert (np.asarray(played.images[1].pixels) == (255, 0, 0)).all(axis=2).any()
    check(played)


def test_a_window_spreads_grey_values() -> None:
    played = episode(WIDE.convert("L"))
    say(played, write_turn("spot", "window", centre=100, width=50))
    turn = played.turns[0]
    assert turn.error is None and turn.boxes_original == () and turn.image == 1
    before, after = (np.asarray(image.pixels, int) for image in played.images)
    assert np.array_equal(after == 255, before >= 125) and np.array_equal(after == 0, before <= 75)
    check(played)


def test_a_tool_can_work_on_another_image() -> None:
    played = episode(WIDE, SMALL)
    say(played, zoom(0, 0, 50, 40, image=1))
    seen = played.turns[0]
    assert seen.error is None
    height, width = played.images[1].size
    assert seen.boxes_original[0] == pytest.approx([0, 0, 50 * SMALL.width / width, 40 * SMALL.height / height])
    exact = SMALL.resize(played.images[2].pixels.size, Image.Resampling.BICUBIC, box=seen.boxes_original[0])
    assert np.array_equal(played.images[2].pixels, exact)
    say(played, zoom(0, 0, 40, 40, image=2))  # and on what a tool returned
    assert played.turns[1].error is None and len(played.images) == 4
    check(played)


@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_are_recorded_in_both_frames_whatever_the_model_writes(frame: Frame) -> None:
    """By hand: 300 x 200 pixels, of which the model sees 168 x 112."""
    protocol = dataclasses.replace(VITAR, frame=frame)
    played = Episode(sample(WIDE), protocol, PROCESSOR, LIMITS)
    assert played.images[0].size == (112, 168)
    written = {"original": (75, 50, 150, 150), "model_input": (42, 28, 84, 84), "normalized": (0.25, 0.25, 0.5, 0.75)}
    written["normalized_1000"] = (250, 250, 500, 750)
    say(played, zoom(*written[frame]))
    assert played.turns[0].boxes_original == ((75, 50, 150, 150),)
    assert played.turns[0].boxes_model_input == ((42, 28, 84, 84),)


def test_what_a_zoom_of_a_zoom_looks_at() -> None:
    """A white square in the dark: what each look shows of it is where its box lies on the first image."""
    dark = Image.new("L", (300, 200))
    dark.paste(255, (150, 100, 210, 160))
    played = episode(WIDE, dark)
    say(played, zoom(60, 40, 150, 100, image=1))
    say(played, write_turn("spot", "mark", box=[[40, 20, 120, 100]], image=2))
    height, width = played.images[3].size
    say(played, zoom(width / 2, height / 2, width, height, image=3))
    record = played.trajectory(stream="expert", policy_version=0, banned_sha256="")
    assert [turn.error for turn in record.turns] == [None] * 3
    for turn in record.turns:
        index, (box,) = record.looked_at(turn)
        assert index == 1
        acted_on = record.images[turn.acted_on].pixels
        (drawn,) = turn.boxes_original
        shown = acted_on.resize((64, 64), Image.Resampling.BICUBIC, box=drawn).convert("L")
        direct = dark.resize((64, 64), Image.Resampling.BICUBIC, box=box.xyxy)
        difference = np.abs(np.asarray(shown, float) - np.asarray(direct, float))
        assert (difference > 60).mean() < 0.1


def test_the_first_look_is_the_first_tool_that_ran_on_boxes_and_says_on_which_image() -> None:
    def played(*texts: str) -> Trajectory:
        record = episode(WIDE, SMALL)
        for text in texts:
            say(record, text)
        return record.trajectory(stream="on_policy", policy_version=0, banned_sha256="")

    height, width = episode(WIDE, SMALL).images[1].size
    whole = (0, 0, width, height)
    assert played(zoom(0, 0, 1, 900), ANSWER).first_look is None  # refused
    assert played(zoom(*whole), ANSWER).first_look == LookedAt(
        0, 0, (Box(0, 0, 300 * width / 168, 200 * height / 112, "original"),)
    )
    assert played(zoom(*whole, image=1), zoom(*whole)).first_look == LookedAt(0, 1, (Box(0, 0, *SMALL.size, "original"),))
    windowed = write_turn("spot", "window", image=1, centre=100, width=50)  # takes no boxes
    assert played(windowed, zoom(*whole, image=2)).first_look == LookedAt(1, 1, (Box(0, 0, *SMALL.size, "original"),))
    assert played("{", zoom(*whole, image=1)).first_look == LookedAt(1, 1, (Box(0, 0, *SMALL.size, "original"),))


# Budgets


def test_an_observation_without_room_ends_the_episode_and_is_not_seen() -> None:
    prompt = len(episode().token_ids)
    turn = len(CHAT.text(zoom(0, 0, 50, 50))) + 1
    for tokens in range(prompt + turn, prompt + turn + 60):
        played = episode(limits=Limits(tokens=tokens, turn_tokens=200))
        assert played.turn_budget == min(200, tokens - prompt)
        say(played, zoom(0, 0, 50, 50))
        check(played)
        if played.finished:
            assert played.end_reason == "overflow"
            assert len(played.images) == 1 and len(played.token_ids) == prompt + turn
            assert played.turns[0].image is None
        else:
            assert len(played.images) == 2 and played.turn_budget > 0
    assert not played.finished


def test_an_image_too_many_ends_the_episode() -> None:
    played = episode(limits=dataclasses.replace(LIMITS, images=1))
    say(played, zoom(0, 0, 50, 50))
    assert (played.end_reason, len(played.images)) == ("overflow", 1)
    check(played)


@pytest.mark.parametrize("limits", [Limits(tokens=30, turn_tokens=10), Limits(tokens=500, turn_tokens=10, images=1)])
def test_a_prompt_over_its_limits_is_refused(limits: Limits) -> None:
    with pytest.raises(DataError, match="sample-1"):
        episode(WIDE, SMALL, limits=limits)


def test_an_image_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ImageError, match="nowhere.png"):
        Episode(dataclasses.replace(sample(), images=("nowhere.png",)), VITAR, PROCESSOR, LIMITS)


# Forks


def test_forks_go_on_by_themselves() -> None:
    played = episode()
    first, second = (played.fork(member) for member in range(2))
    before = list(played.token_ids)
    say(first, zoom(0, 0, 50, 50))
    say(second, ANSWER)
    assert played.token_ids == before and not played.turns and not played.finished and len(played.images) == 1
    assert len(first.images) == 2 and not first.finished
    assert len(second.images) == 1 and second.end_reason == "answered"
    for each in (played, first, second):
        check(each)
    assert (first.member, second.member) == (0, 1)
    assert first.patches[0] is second.patches[0]
    assert first.example().content_ids[0] == episode().example().content_ids[0]  # by which packing encodes it once


# Anything at all

boxes = st.lists(st.integers(-20, 140), min_size=4, max_size=4)
known = st.builds(
    lambda box, name, image: write_turn("spot", name, box=[box], image=image),
    boxes,
    st.sampled_from(["zoom", "mark", "rotate"]),
    st.integers(0, 3),
)
texts = st.sampled_from([ANSWER, "", "upper left", "{"]) | known | st.text(max_size=20)
tokens_of_texts = texts.map(lambda text: [*CHAT.text(text), CHAT.im_end])
any_tokens = st.lists(st.integers(0, tiny.VOCAB - 1), min_size=1, max_size=30)


@pytest.mark.slow
@given(
    st.lists(known.map(lambda text: [*CHAT.text(text), CHAT.im_end]) | tokens_of_texts | any_tokens, max_size=4),
    st.integers(80, 400),
    st.integers(2, 4),
)
@settings(max_examples=200)
def test_whatever_is_written_the_record_stays_whole(turns: Sequence[list[int]], tokens: int, images: int) -> None:
    played = episode(SMALL, limits=Limits(tokens=tokens, turn_tokens=200, images=images))
    for token_ids in turns:
        if played.finished:
            break
        token_ids = token_ids[: played.turn_budget]
        played.add_turn(token_ids, [-0.5] * len(token_ids))
        check(played)
        assert len(played.turns) <= VITAR.max_turns
    assert played.finished or played.turn_budget > 0
