"""Rewards: every total of ViTAR's that an episode of two rounds can reach, functions of a user's, and what fails."""

import contextlib
import dataclasses
import math
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.kit.answered import BOX, GARBAGE, IMAGE, OTHER_BOX, OUTSIDE, RIGHT, UNREADABLE, WRONG, play
from tests.kit.images import noise
from tests.kit.processes import run_code
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.measures import MEASURES
from vitar_jax.evaluation.report import ReportSection
from vitar_jax.evaluation.rules import RULES, Item
from vitar_jax.learning.metrics import first_box_areas
from vitar_jax.learning.rewards import REWARDS, RewardConfig, Rewards, first_box_iou, reward


def vitar_parts(trajectory: Trajectory, **weights: float) -> dict[str, float]:
    scored, failure = Rewards({"vitar": RewardConfig("vitar", weights)})(trajectory)
    assert scored.rewards is not None and failure is None
    return scored.rewards


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
    parts = vitar_parts(play(*turns))
    assert parts == pytest.approx({"action": action, "terminate": terminate, "accuracy": accuracy})
    assert sum(parts.values()) == pytest.approx(total)


@pytest.mark.parametrize("said, right", [("b", True), (" B ", True), ("B_", True), ("B. rows", False), ("AB", False)])
def test_an_answer_is_compared_without_spaces_underscores_and_case(said: str, right: bool) -> None:
    parts = vitar_parts(play(BOX, write_turn("", "Terminate", answer=said)))
    assert parts["accuracy"] == float(right)
    assert parts["terminate"] == 0.2


@pytest.mark.parametrize("said, right", [("A", True), ("b", True), ("C", False), ("AB", False)])
def test_any_of_several_gold_answers_is_right(said: str, right: bool) -> None:
    """Reward, report and the rule `exact` agree."""
    played = play(BOX, write_turn("", "Terminate", answer=said), answers=("A", "B"))
    assert vitar_parts(played)["accuracy"] == right
    assert ReportSection("", [played]).correct(played) == right
    item = Item(played.question, played.options, played.answer, said, answers=played.answers)
    assert RULES["exact"].verdict(item).correct == right
    assert vitar_parts(play(BOX, write_turn("", "Terminate", answer=said)))["accuracy"] == (said == "b")


@pytest.mark.parametrize("answer, answers, refused", [("", (), True), ("", ("B", "A"), False), ("B", ("B", ""), True)])
def test_an_empty_gold_answer_is_refused(answer: str, answers: tuple[str, ...], refused: bool) -> None:
    rewards = Rewards({"vitar": RewardConfig("vitar")})
    sample = Sample("sample-1", "Which texture is it?", (IMAGE,), answer, answers=answers)
    with pytest.raises(DataError, match="sample sample-1: no answer") if refused else contextlib.nullcontext():
        rewards.check(sample)


def test_weights_are_those_of_the_config() -> None:
    assert vitar_parts(play(BOX, RIGHT), action=3.0, terminate=5.0) == {"action": 3.0, "terminate": 5.0, "accuracy": 1.0}


def test_the_iou_part_is_that_of_the_first_box() -> None:
    gold = Box(28, 14, 84, 126 - 14, "original")  # twice as tall as the box, above the image's lower edge
    far = Box(100, 0, 112, 10, "original")
    played = play(BOX, RIGHT, boxes=(far, gold))
    height, width = played.images[0].size
    assert (width, height) == IMAGE.size
    assert first_box_iou(played) == pytest.approx(56 / 98)
    assert vitar_parts(played, iou=0.5)["iou"] == pytest.approx(0.5 * 56 / 98)
    assert "iou" not in vitar_parts(played)


@pytest.mark.parametrize("turns", [(RIGHT,), (GARBAGE, RIGHT), (OUTSIDE, RIGHT)])
def test_the_iou_part_is_zero_without_a_look(turns: tuple[str, ...]) -> None:
    gold = Box(28, 14, 84, 70, "original")
    assert first_box_iou(play(*turns, boxes=(gold,))) == 0
    assert first_box_iou(play(GARBAGE, BOX, boxes=(gold,))) == pytest.approx(
        1
    )  # the first turn that looks, as measures count it
    assert first_box_iou(play(BOX, RIGHT)) == 0  # nor without a reference box


@pytest.mark.parametrize("image, expected", [(0, 1.0), (1, 0.0)])
def test_a_box_on_another_image_is_no_look_at_the_gold_box(image: int, expected: float) -> None:
    """Reward, measure and metric agree on where it looked."""
    gold = Box(28, 14, 84, 70, "original")
    turns = (write_turn("spot", "zoom", box=[[28, 14, 84, 70]], image=image), RIGHT)
    played = play(*turns, boxes=(gold,), images=(IMAGE, noise(140, 168)))
    assert first_box_iou(played) == pytest.approx(expected)
    assert MEASURES["iou"].values(played)[0] == pytest.approx(expected)
    assert first_box_areas(played) == pytest.approx([56 * 56 / math.prod(played.images[image].size)])


# Functions of a user's, and what fails


@pytest.fixture
def registry() -> Iterator[None]:
    """What a test registers is gone after it."""
    with patch.dict(REWARDS):
        yield


@pytest.fixture(scope="module")
def played() -> Trajectory:
    return play(BOX, RIGHT)


def test_a_function_of_a_file_adds_its_parts(played: Trajectory, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("def brief(trajectory):\n    return {'short': len(trajectory.turns), 'unused': 9}\n")
    own = RewardConfig(f"{path}:brief", {"short": -0.5, "unused": 0.0})
    rewards = Rewards({"vitar": RewardConfig("vitar"), "mine": own})
    scored, failure = rewards(played)
    assert failure is None and scored.reward == pytest.approx(1.4 - 0.5 * 2)
    assert list(scored.rewards or ()) == rewards.parts == ["action", "terminate", "accuracy", "short"]


@pytest.mark.parametrize(
    "config, words",
    [
        (RewardConfig("vitra"), "rewards.mine: .*'vitra'.*vitar"),
        (RewardConfig("vitar", {"iuo": 1.0}), "rewards.mine: vitar has no part 'iuo'"),
        (RewardConfig("vitar"), "rewards.mine: another reward has a part"),
        (RewardConfig("FILE.py:brief"), "rewards.mine: .*weights have to name its parts"),
        (RewardConfig("FILE.py:number", {"a": 1.0}), "rewards.mine: .*FILE.py:number: no such function"),
        (RewardConfig("nowhere.py:brief", {"a": 1.0}), "rewards.mine: .*nowhere.py: no such file"),
    ],
)
def test_what_is_no_reward_is_named(config: RewardConfig, words: str, tmp_path: Path) -> None:
    (tmp_path / "FILE.py").write_text("def brief(trajectory): ...\nnumber = 7\n")
    config = dataclasses.replace(config, function=config.function.replace("FILE", str(tmp_path / "FILE")))
    with pytest.raises(ConfigError, match=words):
        Rewards({"vitar": RewardConfig("vitar"), "mine": config})


def hang(trajectory: Trajectory) -> Mapping[str, float]:
    time.sleep(60)
    return {"a": 1.0}


FAILING = {
    "backtracks": (lambda t: {"a": bool(re.match(r"^(a+)+$", "a" * 40 + "!"))}, "timeout"),
    "raises": (lambda t: {"a": 1 / 0}, "exception"),
    "ends the program": (lambda t: sys.exit(1), "exception"),
    "no mapping": (lambda t: None, "exception"),
    "no number": (lambda t: {"a": "one"}, "exception"),
    "other part": (lambda t: {"b": 1.0}, "wrong_parts"),
    "no name": (lambda t: {1: 1.0}, "wrong_parts"),
    "one more part": (lambda t: {"a": 1.0, "b": 1.0}, "wrong_parts"),
    "nan": (lambda t: {"a": float("nan")}, "not_finite"),
    "infinite": (lambda t: {"a": float("inf")}, "not_finite"),
    "hangs": (lambda t: hang(t), "timeout"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_what_fails_leaves_no_reward_and_says_why(name: str, played: Trajectory, registry: None) -> None:
    function, kind = FAILING[name]
    reward("failing", a=1.0)(function)
    began = time.perf_counter()
    mine = RewardConfig("failing", timeout=0.2 if kind == "timeout" else 60)
    rewards = Rewards({"vitar": RewardConfig("vitar"), "mine": mine})
    scored, failure = rewards(played)
    assert failure == kind and scored.rewards is None and scored.reward != scored.reward
    assert time.perf_counter() - began < 30
    assert dataclasses.replace(scored, rewards=played.rewards) == played  # nothing else in the record


def test_a_function_that_no_other_process_can_load_is_warned_of_once(
    played: Trajectory, registry: None, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[float] = [7.0]
    reward("local", a=1.0)(lambda trajectory: {"a": seen[0]})
    both = [Rewards({"mine": RewardConfig("local")}) for _ in range(2)]
    assert [rewards(played)[0].reward for rewards in both for _ in range(2)] == [7.0] * 4
    assert [message.count("It runs in a thread") for message in caplog.messages] == [1]


def test_a_local_function_that_backtracks_ends_at_its_timeout(played: Trajectory, registry: None) -> None:
    text = "a" * 40 + "!"

    @reward("local", a=1.0)
    def local(trajectory: Trajectory) -> Mapping[str, float]:
        return {"a": bool(re.match(r"^(a+)+$", text))}

    began = time.perf_counter()
    assert Rewards({"mine": RewardConfig("local", timeout=0.2)})(played)[1] == "timeout"
    assert time.perf_counter() - began < 30


def test_threads_do_not_matter(played: Trajectory, registry: None) -> None:
    """The first one waits for the last."""
    last = threading.Event()

    @reward("place", place=1.0)
    def place(trajectory: Trajectory) -> Mapping[str, float]:
        if trajectory.member == 0:
            last.wait(30)
        if trajectory.member == 7:
            last.set()
        return {"place": trajectory.member}

    members = [dataclasses.replace(played, member=member) for member in range(8)]
    with ThreadPoolExecutor(8) as pool:
        scored = [t.reward for t, _ in pool.map(Rewards({"place": RewardConfig("place")}), members)]
    assert scored == list(range(8))


def test_one_that_hangs_does_not_keep_the_program_from_ending() -> None:
    script = """
import time
from tests.kit.trajectories import make_trajectory
from vitar_jax.learning.rewards import RewardConfig, Rewards, reward
reward("hang", a=1.0)(lambda trajectory: time.sleep(600))
print(Rewards({"hang": RewardConfig("hang", timeout=0.1)})(make_trajectory())[1])
"""
    assert run_code(script, timeout=120) == "timeout\n"
