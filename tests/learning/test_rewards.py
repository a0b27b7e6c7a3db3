"""ViTAR's reward: every total that an episode of two rounds can reach, played to its end."""

import dataclasses

import pytest

from tests import tiny
from vitar_jax.episodes.boxes import Box
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import PROTOCOLS, write_turn
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.learning.rewards import RewardWeights, first_box_iou, vitar_reward

PROCESSOR = tiny.processor(4, 12)
VITAR = dataclasses.replace(PROTOCOLS["vitar"], system="Look twice.", tools=("mark", "zoom"))
IMAGE = tiny.noise(112, 84)  # the model sees it in its own size

BOX = write_turn("spot", "zoom", box=[[28, 14, 84, 70]])
OTHER_BOX = write_turn("spot", "mark", box=[[0, 0, 40, 40]])
OUTSIDE = write_turn("spot", "zoom", box=[[28, 14, 84, 900]])
RIGHT = write_turn("This is it.", "Terminate", answer="B")
WRONG = write_turn("This is it.", "Terminate", answer="A")
UNREADABLE = write_turn("This is it.", "Terminate", answer=None)
GARBAGE = "upper left"


def play(*turns: str, answer: str = "B", boxes: tuple[Box, ...] = ()) -> Trajectory:
    sample = Sample("sample-1", "Which texture is it?", (IMAGE,), answer, (("A", "flat"), ("B", "rows")), boxes)
    episode = Episode(sample, VITAR, PROCESSOR, Limits(tokens=1000, turn_tokens=200))
    for text in turns:
        assert not episode.finished
        token_ids = [*PROCESSOR.chat.text(text), PROCESSOR.chat.im_end]
        episode.add_turn(token_ids, [-0.5] * len(token_ids))
    assert episode.finished
    return episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="")


@pytest.mark.parametrize(
    "turns, action, terminate, accuracy, total",
    [
        ((BOX, RIGHT), 0.2, 0.2, 1.0, 1.4),
        ((BOX, WRONG), 0.2, 0.2, 0.0, 0.4),
        ((RIGHT,), 0.0, 0.2, 1.0, 1.2),
        ((WRONG,), 0.0, 0.2, 0.0, 0.2),
        ((OUTSIDE, RIGHT), 0.0, 0.2, 1.0, 1.2),
        ((GARBAGE, RIGHT), 0.0, 0.2, 1.0, 1.2),
        ((UNREADABLE, RIGHT), 0.0, 0.2, 1.0, 1.2),
        ((OUTSIDE, WRONG), 0.0, 0.2, 0.0, 0.2),
        ((GARBAGE, WRONG), 0.0, 0.2, 0.0, 0.2),
        ((BOX, OTHER_BOX), 0.4, 0.0, 0.0, 0.4),
        ((BOX, GARBAGE), 0.2, 0.0, 0.0, 0.2),
        ((BOX, UNREADABLE), 0.2, 0.0, 0.0, 0.2),
        ((GARBAGE, BOX), 0.2, 0.0, 0.0, 0.2),
        ((GARBAGE, GARBAGE), 0.0, 0.0, 0.0, 0.0),
        ((OUTSIDE, OUTSIDE), 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_every_total(turns: tuple[str, ...], action: float, terminate: float, accuracy: float, total: float) -> None:
    parts = vitar_reward(play(*turns), RewardWeights())
    assert parts == pytest.approx({"action": action, "terminate": terminate, "accuracy": accuracy})
    assert sum(parts.values()) == pytest.approx(total)


@pytest.mark.parametrize("said, right", [("b", True), (" B ", True), ("B_", True), ("B. rows", False), ("AB", False)])
def test_an_answer_is_compared_without_spaces_underscores_and_case(said: str, right: bool) -> None:
    parts = vitar_reward(play(BOX, write_turn("", "Terminate", answer=said)), RewardWeights())
    assert parts["accuracy"] == float(right)
    assert parts["terminate"] == 0.2


def test_weights_are_those_of_the_config() -> None:
    weights = RewardWeights(action=3.0, terminate=5.0, accuracy=7.0)
    assert vitar_reward(play(BOX, RIGHT), weights) == {"action": 3.0, "terminate": 5.0, "accuracy": 7.0}


def test_the_iou_part_is_that_of_the_first_box() -> None:
    gold = Box(28, 14, 84, 126 - 14, "original")  # twice as tall as the box, above the image's lower edge
    far = Box(100, 0, 112, 10, "original")
    played = play(BOX, RIGHT, boxes=(far, gold))
    height, width = played.images[0].size
    assert (width, height) == IMAGE.size
    assert first_box_iou(played) == pytest.approx(56 / 98)
    assert vitar_reward(played, RewardWeights(iou=0.5))["iou"] == pytest.approx(0.5 * 56 / 98)
    assert "iou" not in vitar_reward(played, RewardWeights())


@pytest.mark.parametrize("turns", [(RIGHT,), (GARBAGE, BOX), (OUTSIDE, RIGHT)])
def test_the_iou_part_is_zero_without_a_good_first_box(turns: tuple[str, ...]) -> None:
    gold = Box(28, 14, 84, 70, "original")
    assert first_box_iou(play(*turns, boxes=(gold,))) == 0
    assert first_box_iou(play(BOX, RIGHT)) == 0  # nor without a reference box
