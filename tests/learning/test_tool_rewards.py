"""Rewards of DeepEyes, Ophiuchus, PyVision-RL and GEMeX-ThinkVG: episodes with every part by hand, from the published code."""

import dataclasses

import numpy as np
import pytest

from tests.kit.answered import BOX, GARBAGE, OTHER_BOX, OUTSIDE, RIGHT, UNREADABLE, WRONG, play
from tests.kit.trajectories import ellipse, make_trace
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.episodes.sample import SegmentedObject
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.learning.tool_rewards import deepeyes, gemex, ophiuchus, pyvision

UNKNOWN = write_turn("spot", "crop", box=[[28, 14, 84, 70]])
NO_BOX = write_turn("spot", "zoom")
THOUGHTLESS = RIGHT.replace('"thought"', '"note"')
CHINESE = BOX.replace("spot", "\u70b9")


def earned(name: str, played: Trajectory) -> float:
    scored, failure = Rewards({name: RewardConfig(name)})(played)
    assert failure is None
    return scored.reward


def with_text(played: Trajectory, text: str, **changes: object) -> Trajectory:
    """Replaces the text of the last turn."""
    turns = (*played.turns[:-1], dataclasses.replace(played.turns[-1], text=text))
    return dataclasses.replace(played, turns=turns, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "turns, answer, tool, total",
    [
        ((BOX, RIGHT), 1, 1, 2.0),  # the bonus needs both
        ((RIGHT,), 1, 0, 0.8),
        ((BOX, WRONG), 0, 0, 0.0),
        ((WRONG,), 0, 0, 0.0),
        ((OUTSIDE, RIGHT), 1, 0, 0.8),  # no image was shown
        ((GARBAGE, RIGHT), 1, 0, 0.8),
        ((BOX, OTHER_BOX), 0, 0, 0.0),
        ((BOX, UNREADABLE), 0, 0, 0.0),
    ],
)
def test_deepeyes(turns: tuple[str, ...], answer: float, tool: float, total: float) -> None:
    played = play(*turns)
    assert deepeyes(played) == {"answer": answer, "format": 0, "tool": tool}
    assert earned("deepeyes", played) == pytest.approx(total)


@pytest.mark.parametrize(
    "text, total",
    [
        ("<think>It shows rows.</think><answer>B</answer>", 2.0),
        ("<think>It shows rows.<answer>B</answer>", 1.8),
        ("<think>It shows rows.</think><answer>B", 1.8),
        ("<think>Is it <answer>?</think><answer>B</answer>", 2.0),  # only the text after the last </think> counts
        ("<think>So.</think><think>No.</think><answer>B</answer></answer>", 1.8),
    ],
)
def test_tags_that_are_not_closed_cost_deepeyes_format_and_all_of_pyvision(text: str, total: float) -> None:
    played = with_text(play(BOX, RIGHT), text)
    assert earned("deepeyes", played) == pytest.approx(total)
    assert earned("pyvision", played) == pytest.approx(1.1 if total == 2.0 else 0.0)


@pytest.mark.parametrize("length, deep, tools", [(999, 2.0, 1.1), (1000, -0.2, 0.1)])
def test_an_answer_of_1000_characters_is_wrong(length: int, deep: float, tools: float) -> None:
    """PyVision-RL's code still pays its calls."""
    answer = "B" * length
    played = dataclasses.replace(play(BOX, RIGHT), answer=answer, predicted_answer=answer)
    assert earned("deepeyes", played) == pytest.approx(deep)
    assert earned("pyvision", played) == pytest.approx(tools)


@pytest.mark.parametrize(
    "turns, form, answer, tool, invalid, failed, total",
    [
        ((BOX, RIGHT), 1, 1, 1, 0, 0, 4.0),
        ((RIGHT,), 1, 1, 0, 0, 0, 2.0),
        ((BOX, WRONG), 1, 0, 0, 0, 0, 1.0),  # the bonus needs a right answer
        ((WRONG,), 1, 0, 0, 0, 0, 1.0),
        ((OUTSIDE, RIGHT), 1, 1, 0, 0, 1, 2.0),  # a call that failed is well-formed, but uses no tool
        ((NO_BOX, RIGHT), 1, 1, 0, 0, 1, 2.0),
        ((UNKNOWN, RIGHT), 0, 1, 0, 0, 0, 1.0),
        ((GARBAGE, RIGHT), 0, 1, 0, 1, 0, 0.9),  # neither a thought nor an action
        ((BOX, THOUGHTLESS), 0, 1, 1, 1, 0, 2.9),
        ((CHINESE, RIGHT), 1, 1, 1, 1, 0, 3.9),
        ((BOX, OTHER_BOX), 0, 0, 0, 0, 0, 0.0),  # the last turn does not answer
        ((BOX, GARBAGE), 0, 0, 0, 1, 0, -0.1),
        ((GARBAGE, GARBAGE), 0, 0, 0, 2, 0, -0.2),
    ],
)
def test_ophiuchus(
    turns: tuple[str, ...], form: float, answer: float, tool: float, invalid: float, failed: float, total: float
) -> None:
    played = play(*turns)
    parts = {"format": form, "answer": answer, "tool": tool, "invalid": invalid, "failed_calls": failed}
    assert ophiuchus(played) == parts
    assert earned("ophiuchus", played) == pytest.approx(total)


@pytest.mark.parametrize("overlap, answer", [(10, 3), (9, 3), (8, 2), (7, 1), (6, 1), (5, 0), (0, 0)])
def test_ophiuchus_pays_masks_and_boxes_in_steps_of_iou(overlap: int, answer: float) -> None:
    """IoUs of 1, 0.9, 0.8, ..., of which a step excludes its bound."""
    size = (84, 112)
    gold, made = np.zeros(size, bool), np.zeros(size, bool)
    gold[:60, :50], made[:60, : 5 * overlap] = True, True
    objects = (SegmentedObject("obj1", Mask.of(gold, "original"), in_answer=True),)
    early, late = (ObjectMask(0, mask=Mask.of(array, "original")) for array in (~gold, made))
    played = play(BOX, WRONG)
    turns = (dataclasses.replace(played.turns[0], masks=(early,)), dataclasses.replace(played.turns[1], masks=(late,)))
    masked = dataclasses.replace(played, turns=turns, objects=objects)
    assert ophiuchus(masked)["answer"] == answer  # whatever the text says
    assert ophiuchus(masked)["tool"] == (answer > 0)

    box = write_turn("", "zoom", box=[[0, 0, max(30, 5 * overlap), 60]])
    boxed = play(box, WRONG, answer="", boxes=(Box(0, 0, 50, 60, "original"), Box(80, 0, 90, 9, "original")))
    assert ophiuchus(boxed)["answer"] == (answer if overlap > 6 else 1)
    assert ophiuchus(play(box, RIGHT, boxes=boxed.boxes))["answer"] == 1  # a question


def test_ophiuchus_compares_the_last_mask_with_all_gold_masks_of_the_answer() -> None:
    trace = make_trace()  # its last mask is a little off the gold one
    assert ophiuchus(trace)["answer"] == 2
    both = (*trace.objects, SegmentedObject("obj3", ellipse(220, 150, 30, 30), in_answer=True))
    assert ophiuchus(dataclasses.replace(trace, objects=both))["answer"] == 0
    unmasked = dataclasses.replace(trace, turns=tuple(dataclasses.replace(turn, masks=()) for turn in trace.turns))
    assert ophiuchus(unmasked)["answer"] == 0


@pytest.mark.parametrize(
    "turns, answer, calls, total",
    [
        ((BOX, RIGHT), 1, 1, 1.1),
        ((RIGHT,), 1, 0, 1.0),
        ((OUTSIDE, RIGHT), 1, 1, 1.1),  # a call that returned an error
        ((NO_BOX, RIGHT), 1, 1, 1.1),
        ((UNKNOWN, RIGHT), 1, 0, 1.0),
        ((GARBAGE, RIGHT), 1, 0, 1.0),
        ((BOX, WRONG), 0, 0, 0.0),  # calls before a wrong answer earn nothing
        ((BOX, OTHER_BOX), 0, 0, 0.0),
    ],
)
def test_pyvision(turns: tuple[str, ...], answer: float, calls: float, total: float) -> None:
    played = play(*turns)
    assert pyvision(played) == {"answer": answer, "calls": calls}
    assert earned("pyvision", played) == pytest.approx(total)
    several = dataclasses.replace(played, turns=(*[played.turns[0]] * 3, played.turns[-1]))
    if len(turns) == 2:
        assert pyvision(several)["calls"] == 3 * calls  # it accumulates


def test_pyvision_pays_no_answer_that_holds_markup() -> None:
    for answer in ("\\boxed{B}", "<answer>B", "<interpreter>B"):
        assert earned("pyvision", dataclasses.replace(play(BOX, RIGHT), answer=answer, predicted_answer=answer)) == 0


LEFT, RIGHT_SIDE = Box(0, 0, 40, 40, "original"), Box(60, 0, 100, 40, "original")
TWO = write_turn("", "mark", box=[[60, 0, 100, 40], [0, 0, 40, 30]])


@pytest.mark.parametrize(
    "turns, gold, answer, grounding",
    [
        ((OTHER_BOX, RIGHT), (LEFT,), 1, 1.0),
        ((OTHER_BOX, WRONG), (LEFT,), 0, 1.0),
        ((OTHER_BOX, RIGHT), (RIGHT_SIDE,), 1, 0.0),
        ((OTHER_BOX, RIGHT), (LEFT, RIGHT_SIDE), 1, 0.0),  # one box for two
        ((TWO, RIGHT), (LEFT, RIGHT_SIDE), 1, (1 + 0.75) / 2),  # in the best order
        ((TWO, RIGHT), (LEFT,), 1, 0.0),
        ((RIGHT,), (LEFT,), 1, 0.0),
        ((RIGHT,), (), 1, 0.0),
        ((OUTSIDE, RIGHT), (LEFT,), 1, 0.0),
    ],
)
def test_gemex(turns: tuple[str, ...], gold: tuple[Box, ...], answer: float, grounding: float) -> None:
    played = play(*turns, boxes=gold)
    assert gemex(played) == {"answer": answer, "grounding": pytest.approx(grounding)}
    assert earned("gemex", played) == pytest.approx(answer + grounding)


def test_gemex_maps_boxes_through_edits_to_the_gold_boxes_image() -> None:
    """A box on an enlarged crop counts where it lies on the original."""
    crop = write_turn("", "zoom", box=[[0, 0, 56, 42]])
    played = play(crop, RIGHT, boxes=(LEFT,))
    inner = dataclasses.replace(played.turns[0], call=None, action={"name": "zoom", "arguments": {"image": 1}})
    width, height = played.images[1].pixels.size
    inner = dataclasses.replace(inner, boxes_original=((0.0, 0.0, 40 / 56 * width, 40 / 42 * height),))
    assert gemex(dataclasses.replace(played, turns=(inner, played.turns[1])))["grounding"] == pytest.approx(1.0)
