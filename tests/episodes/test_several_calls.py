"""Several tools in a turn: played in order, on images of earlier calls too, up to the first that fails."""

import dataclasses

import pytest

from tests.kit.episodes import LIMITS, PROCESSOR, VITAR, WIDE, check, sample, say
from vitar_jax.episodes.affine import IDENTITY
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.parsers import write_calls, write_turn
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.learning.tool_rewards import deepeyes, gemex, ophiuchus

TWO = dataclasses.replace(VITAR, tools=("mark", "zoom", "window", "ruler"), max_calls=3)
SHOW = ("zoom", {"box": [[0, 0, 56, 56]]})
MARK = ("mark", {"box": [[56, 0, 112, 56]]})
DARK = {"centre": 40, "width": 80}
OUTSIDE = ("zoom", {"box": [[0, 0, 5000, 56]]})
ANSWER = ("Terminate", {"answer": "A"})


def play(*texts: str, protocol: Protocol = TWO, images: int = 6) -> Episode:
    played = Episode(sample(WIDE), protocol, PROCESSOR, dataclasses.replace(LIMITS, tokens=2000, images=images))
    for text in texts:
        say(played, text)
    check(played)
    return played


def record(played: Episode) -> Trajectory:
    return played.trajectory(stream="on_policy", policy_version=0, banned_sha256="")


def said(played: Episode) -> str:
    return PROCESSOR.chat.decode(played.token_ids[played.turns[-1].end :])


def test_calls_of_a_turn_are_those_of_as_many_turns() -> None:
    """The same images, maps and boxes; a later call may name an image that an earlier one returned."""
    calls = [SHOW, ("window", {"image": 1, **DARK}), ("mark", {"box": [[0, 0, 40, 40]], "image": 2})]
    together = play(write_calls("So.", *calls))
    apart = (write_turn("So.", name, **arguments) for name, arguments in calls)
    alone = play(*apart, protocol=dataclasses.replace(TWO, max_turns=9))
    made = [[(image.sha256, image.source, image.to_source) for image in played.images] for played in (together, alone)]
    assert made[0] == made[1]
    assert {image.turn for image in together.images[1:]} == {0}
    (turn,) = together.turns
    assert turn.error is None and len(turn.further) == 2
    for one, other in zip(turn.per_call, alone.turns, strict=True):
        same = [(t.call, t.boxes_original, t.boxes_model_input, t.image, t.error) for t in (one, other)]
        assert same[0] == same[1]
        assert record(together).looked_at(one) == record(alone).looked_at(other)


def test_a_call_that_fails_is_the_last_and_those_before_it_are_seen() -> None:
    played = play(write_calls("So.", SHOW, OUTSIDE, MARK))
    (turn,) = played.turns
    assert turn.error is not None and turn.error[0] == "box_outside" and turn.image == 1
    assert len(played.images) == 2 and [one.image for one in turn.further] == [None]
    assert [one.error for one in turn.per_call] == [None, turn.error]
    assert said(played).count("<|image_pad|>") > 0 and "Error: A box lies outside the image." in said(played)
    unread = play(write_calls("So.", SHOW, ("zoom", {"box": 7}), MARK)).turns[0]
    assert unread.error is not None and unread.error[0] == "box_count" and unread.further[0].call is None
    first = play(write_calls("So.", OUTSIDE, SHOW))
    assert len(first.images) == 1 and not first.turns[0].further and first.turns[0].image is None


def test_texts_and_images_of_all_calls_are_one_observation() -> None:
    ruler = ("ruler", {"box": [[0, 0, 40, 40]]})
    played = play(write_calls("So.", ruler, SHOW, ruler))
    assert said(played).count("Width") == 2 and len(played.images) == 2
    assert [one.image for one in played.turns[0].per_call] == [None, 1, None]


@pytest.mark.parametrize(
    "calls, message",
    [
        ((SHOW, MARK, SHOW, MARK), "A turn has at most 3 actions."),
        ((SHOW, ANSWER), "A turn calls tools or answers."),
        ((ANSWER, SHOW), "A turn calls tools or answers."),
    ],
)
def test_too_much_in_one_turn_is_an_error(calls: tuple, message: str) -> None:
    played = play(write_calls("So.", *calls))
    assert played.turns[0].error == ("second_action", message) and len(played.images) == 1 and not played.finished


def test_without_the_choice_only_the_first_action_counts() -> None:
    plain = dataclasses.replace(TWO, max_calls=1)
    several, one = (play(write_calls("So.", *calls), protocol=plain) for calls in ((SHOW, MARK), (SHOW,)))
    assert [image.sha256 for image in several.images] == [image.sha256 for image in one.images]
    assert not several.turns[0].further and said(several) == said(one)
    assert play(write_calls("So.", ANSWER, SHOW), protocol=plain).predicted_answer == "A"
    assert (plain.most_images, TWO.most_images) == (2, 6)
    with pytest.raises(ConfigError, match="max_calls: got 0"):
        dataclasses.replace(TWO, max_calls=0)


def test_images_beyond_the_limit_end_the_episode_without_any_of_the_turn() -> None:
    played = play(write_calls("So.", SHOW, MARK), images=2)
    assert played.end_reason == "overflow" and len(played.images) == 1
    assert [one.image for one in played.turns[0].per_call] == [None, None]


def test_a_record_keeps_all_calls(tmp_path) -> None:
    played = record(play(write_calls("So.", SHOW, MARK, OUTSIDE), write_turn("So.", *ANSWER[:1], **ANSWER[1])))
    TrajectoryWriter(tmp_path).write([played])
    (again,) = read_trajectories(tmp_path)
    assert again.turns == played.turns and len(again.turns[0].further) == 2
    assert "further" not in played.turns[1].to_json()
    assert played.first_look is not None and played.first_look.boxes[0].x1 == 0


def test_rewards_count_every_call() -> None:
    answer = write_turn("So.", "Terminate", answer="A")
    played = record(play(write_calls("So.", OUTSIDE), write_calls("So.", SHOW, MARK), answer))
    assert deepeyes(played)["tool"] == 1 and ophiuchus(played)["tool"] == 1
    boxes = [box for turn in played.turns for one in turn.per_call if one.carried_out for box in played.looked_at(one)[1]]
    assert len(boxes) == 2
    assert gemex(dataclasses.replace(played, boxes=(boxes[1], boxes[0])))["grounding"] == pytest.approx(1)
    assert played.images[2].to_source == IDENTITY
