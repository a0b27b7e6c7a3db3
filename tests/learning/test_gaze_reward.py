"""MedEyes' reward: twenty episodes with every part by hand, and the grammar beside a regular expression."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.answered import BOX as ZOOM
from tests.kit.answered import IMAGE, PROCESSOR, RIGHT, play
from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.gaze_parser import write_gaze
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.errors import DataError
from vitar_jax.learning.gaze_reward import count_distinct, diversity, medeyes
from vitar_jax.learning.rewards import REWARDS, RewardConfig, Rewards

MEDEYES = dataclasses.replace(PROTOCOLS["medeyes"], system="Gaze, then answer.")
CHAT = PROCESSOR.chat


def gaze(*box: float) -> str:
    return write_gaze("Look.", ToolCall("Gaze", (box,)))  # type: ignore[arg-type]


# On an image of 112 x 84 pixels, which the model sees at that size.
LEFT, RIGHT_SIDE, WHOLE = gaze(0, 0, 56, 84), gaze(56, 0, 112, 84), gaze(0, 0, 112, 84)
LOW = gaze(0, 28, 56, 84)  # IoU 2/3 with LEFT, 1/3 with WHOLE
MIDDLE = gaze(28, 0, 84, 84)  # IoU 1/3 with LEFT and RIGHT_SIDE, exactly 1/2 with WHOLE
OUTSIDE, THIN = gaze(0, 0, 56, 85), gaze(0, 0, 27, 84)
B, A = (write_gaze("So.", Answer(text)) for text in "BA")
FEEDBACK = LEFT + "<feedback></feedback>"


FIRST = Episode(Sample("s", "Which?", (IMAGE,), "B"), MEDEYES, PROCESSOR, Limits(tokens=3000, turn_tokens=400, images=5))


def gazing(*turns: str) -> Trajectory:
    """Plays turns until the episode ends."""
    played = FIRST.fork(1)
    for text in turns:
        if not played.finished:
            played.add_turn([*CHAT.text(text), CHAT.im_end], None)
    return played.trajectory(stream="on_policy", policy_version=0, banned_sha256="")


@pytest.mark.parametrize(
    "turns, answer, grammar, diversity, regions",
    [
        # Right answers, with one gaze, none, and two to four.
        ((LEFT, B), 1, 1, 0, 1 / 4),
        ((B,), 1, 0, 0, 0),
        ((LEFT, RIGHT_SIDE, B), 1, 1, 1, 2 / 4),
        ((LEFT, LEFT, B), 1, 1, 0, 1 / 4),
        ((LEFT, LOW, B), 1, 1, 0, 1 / 4),
        ((WHOLE, MIDDLE, B), 1, 1, 0, 1 / 4),  # exactly 0.5 is the same region
        ((LEFT, MIDDLE, RIGHT_SIDE, B), 1, 1, 1, 3 / 4),
        ((LEFT, LOW, WHOLE, B), 1, 1, 1 / 3, 1 / 4),  # only LOW and WHOLE differ
        ((WHOLE, LOW, LEFT, B), 1, 1, 1 / 3, 2 / 4),  # the same three: LOW is new after WHOLE
        ((LEFT, LEFT, RIGHT_SIDE, RIGHT_SIDE, B), 1, 1, 4 / 6, 2 / 4),
        ((LEFT, RIGHT_SIDE, MIDDLE, gaze(28, 28, 84, 56), B), 1, 1, 1, 4 / 4),
        # Wrong answers and none.
        ((LEFT, RIGHT_SIDE, A), 0, 1, 1, 2 / 4),
        ((A,), 0, 0, 0, 0),
        ((LEFT, LEFT, LEFT, LEFT, RIGHT_SIDE), 0, 0, 0, 1 / 4),  # the fifth gaze is at the turn limit and shows nothing
        # Errors: each costs the grammar, and a gaze that failed shows no region.
        ((LEFT, OUTSIDE, B), 1, 0, 0, 1 / 4),
        ((THIN, LEFT, RIGHT_SIDE, B), 1, 0, 1, 2 / 4),
        ((FEEDBACK, LEFT, B), 1, 0, 0, 1 / 4),
        ((LEFT + RIGHT_SIDE, LEFT, B), 1, 0, 0, 1 / 4),
        ((LEFT, FEEDBACK + B, B), 1, 0, 0, 1 / 4),
        ((LEFT, "B", A), 0, 0, 0, 1 / 4),
    ],
)
def test_every_part_by_hand(turns: tuple[str, ...], answer: float, grammar: float, diversity: float, regions: float) -> None:
    played = gazing(*turns)
    expected = {"answer": answer, "grammar": grammar, "diversity": diversity, "regions": regions}
    assert medeyes(played) == pytest.approx(expected)
    scored, failure = Rewards({"medeyes": RewardConfig("medeyes")})(played)
    assert failure is None and scored.rewards == pytest.approx(
        {"answer": 0.7 * answer, "grammar": 0.2 * grammar, "diversity": 0.1 * diversity}
    )
    both = RewardConfig("medeyes", {"diversity": 0.05, "regions": 0.05})
    assert Rewards({"medeyes": both})(played)[0].reward == pytest.approx(
        0.7 * answer + 0.2 * grammar + 0.05 * diversity + 0.05 * regions
    )


def test_zooming_into_a_region_counts_as_another_region() -> None:
    """As the published threshold has it: a concentric box of 0.7 of the sides has an IoU of 0.49."""
    outer, inner = Box(0, 0, 100, 100, "original"), Box(15, 15, 85, 85, "original")
    assert diversity([(0, outer), (0, inner)]) == 1.0
    assert diversity([(0, outer), (0, Box(14, 14, 86, 86, "original"))]) == 0.0
    assert diversity([(0, outer), (1, outer)]) == 1.0  # on another image


sides = st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda side: side[0] < side[1])
places = st.lists(st.tuples(st.integers(0, 1), sides, sides), max_size=5)


@given(places)
def test_regions_are_compared_as_pixels_are_counted(found: list) -> None:
    """Beside masks of pixels in numpy."""
    masks = []
    for image, (x1, x2), (y1, y2) in found:
        mask = np.zeros((2, 12, 12), bool)
        mask[image, y1:y2, x1:x2] = True
        masks.append(mask.ravel())
    stack = np.array(masks, int).reshape(len(found), 288)
    shared = stack @ stack.T
    union = stack.sum(1)[:, None] + stack.sum(1) - shared
    other = 2 * shared < union
    boxes = [(image, Box(x[0], y[0], x[1], y[1], "original")) for image, x, y in found]
    pairs = other[np.triu_indices(len(found), 1)]
    assert diversity(boxes) == pytest.approx(pairs.mean() if len(pairs) else 0.0)
    assert count_distinct(boxes) == sum(other[n, :n].all() for n in range(len(found)))


# Grammar, beside a regular expression over the conversation

TAGS = [f"<{slash}{name}>" for name in ("reasoning", "action", "feedback", "answer") for slash in ("", "/")]
SEEN = r"<feedback><\|vision_start\|>(<\|image_pad\|>)+<\|vision_end\|></feedback>"
REPLIED = r"<\|im_end\|>\n<\|im_start\|>user\n" + SEEN + r"<\|im_end\|>\n<\|im_start\|>assistant\n"
THOUGHT = r"\s*<reasoning>[^<]*</reasoning>\s*"
LAST = rf"{THOUGHT}<answer>[^<]*[^<\s][^<]*</answer>\s*<\|im_end\|>"
GRAMMAR = re.compile(rf"({THOUGHT}<action>[^<]*</action>\s*{REPLIED})+{LAST}")

turns = st.sampled_from([LEFT, MIDDLE, LOW, LEFT, MIDDLE, B, A, OUTSIDE, THIN, FEEDBACK, LEFT + LOW, B + A, "B", ""])
others = st.sampled_from(
    [f"\n{LEFT} ", B.replace("B", " "), LEFT.replace("Gaze", "zoom"), gaze(56, 0, 0, 84), LEFT.replace("[", "[[")]
)
torn = st.lists(st.sampled_from([*TAGS, "So. ", "B"]), max_size=6).map("".join)


@given(st.lists(turns | others | torn, max_size=5), st.sampled_from([B, A, LEFT, FEEDBACK]))
@settings(max_examples=150)
def test_the_grammar_of_a_record_is_that_of_its_text(texts: list[str], last: str) -> None:
    played = gazing(*texts, last)
    start = played.turns[0].start
    text = CHAT.decode(played.token_ids[start:])
    assert medeyes(played)["grammar"] == (GRAMMAR.fullmatch(text) is not None), text


# Other protocols, and samples with several answers or none


def test_any_of_the_correct_answers_is_right() -> None:
    answers = [medeyes(dataclasses.replace(gazing(LEFT, said), answers=("B", "A")))["answer"] for said in (A, B)]
    assert answers == [True, True]
    assert not medeyes(dataclasses.replace(gazing(LEFT, A), answers=("B", "C")))["answer"]


def test_other_protocols_have_the_same_grammar() -> None:
    assert medeyes(play(ZOOM, RIGHT)) == {"answer": True, "grammar": True, "diversity": 0, "regions": 0.25}
    assert not medeyes(play(RIGHT))["grammar"]


@pytest.mark.parametrize(
    "name, weights, part",
    [
        ("medeyes", {}, "answer"),
        ("medeyes", {"answer": 0.0}, None),
        ("vitar", {}, "accuracy"),
        ("vitar", {"accuracy": 0.0}, None),
    ],
)
def test_a_sample_without_an_answer_is_refused_by_the_part_that_compares(name: str, weights: dict, part: str | None) -> None:
    rewards = Rewards({"mine": RewardConfig(name, weights)})
    rewards.check(FIRST.sample)
    if part is None:
        rewards.check(dataclasses.replace(FIRST.sample, answer=""))
    else:
        with pytest.raises(DataError, match=f"sample s: no answer, which the reward's part {part} needs"):
            rewards.check(dataclasses.replace(FIRST.sample, answer=""))


def test_a_reward_of_a_users_may_need_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWARDS, "mine", dataclasses.replace(REWARDS["medeyes"], needs_answer=["grammar"]))
    with pytest.raises(DataError, match="part grammar needs"):
        Rewards({"mine": RewardConfig("mine")}).check(dataclasses.replace(FIRST.sample, answer=""))
