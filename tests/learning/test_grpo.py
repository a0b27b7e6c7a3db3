"""What GRPO makes of played groups: which are learnt from, which tokens, and where the samples go on."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.utils import nanstd

from tests.kit import answered, tiny
from tests.kit.images import noise
from tests.kit.streams import Samples
from vitar_jax.data.skipping import Skips
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory
from vitar_jax.errors import DataError
from vitar_jax.learning.advantages import group_advantages, length_penalty
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_batches import GRPOBatches, grpo_batch, with_advantages
from vitar_jax.learning.rewards import RewardConfig, Rewards
from vitar_jax.processing.packing import Batch, BatchShape
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.player import Player
from vitar_jax.rollout.stats import RolloutStats

PROCESSOR = tiny.processor(4)
IMAGE = noise(56, 56)
GROUPS, MEMBERS, TURN_TOKENS = 3, 2, 60
RIGHT, WRONG = (write_turn("So it is.", "Terminate", answer=answer) for answer in "BA")


ENGINE: Any = SimpleNamespace(
    pool=ThreadPoolExecutor(1),
    processor=PROCESSOR,
    limits=Limits(tokens=400, turn_tokens=TURN_TOKENS),
    banned_sha256="",
    config=RolloutConfig(1, (1,)),
    stats=RolloutStats(),
)


class Scripted(Player):
    """A player that goes by the last letter of a sample's name: 1 has a group that differs, 2 a turn that is cut off."""

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        assert groups  # to play none would still take a cache
        for episode in (episode for group in groups for episode in group):
            chat, kind = PROCESSOR.chat, episode.sample.sample_id[-1]
            token_ids = [*chat.text(RIGHT if kind != "0" and episode.member == 0 else WRONG), chat.im_end]
            if kind == "2" and episode.member == 1:
                token_ids = (token_ids * TURN_TOKENS)[:TURN_TOKENS]
                token_ids[-1] = token_ids[0]
            episode.add_turn(token_ids, [-0.5] * len(token_ids))
            assert episode.finished
            yield episode


FIRST: Any = SimpleNamespace(step=0, model=None)


def make_batches(pattern: str, kept: list[Trajectory], **knobs: Any) -> GRPOBatches:
    return GRPOBatches(
        samples=Samples(pattern, IMAGE),  # type: ignore[arg-type]
        groups=GROUPS,
        player=lambda model, sampling: Scripted(ENGINE, PROTOCOLS["direct"], lambda: None, sampling),  # type: ignore[arg-type]
        shape=BatchShape(1, GROUPS * MEMBERS, 300, GROUPS, PROCESSOR.size_classes[0], policy_tokens=1000),  # one a row
        sampling=Sampling(),
        rewards=Rewards({"vitar": RewardConfig("vitar")}),
        objective=GRPO(group_size=MEMBERS, **knobs),
        keep=lambda step, trajectories: kept.extend(trajectories),
    )


def play(pattern: str, **knobs: Any) -> tuple[list[Trajectory], Batch, dict[str, float], int]:
    """One step: what was kept, the batch, its numbers, and how many samples it took."""
    kept: list[Trajectory] = []
    batches = make_batches(pattern, kept, **knobs)
    batch, scalars = batches.next(FIRST)
    return kept, batch, scalars, batches.taken


@pytest.mark.parametrize(
    "pattern, refills, expected, drawn",
    [
        ("0101", 0, "010", 3),  # nothing is replaced
        ("1110", 9, "111", 3),  # nothing has to be
        ("0101", 9, "111", 6),  # 010, then 10, then 1
        ("0101", 1, "110", 5),  # two flat groups give way to one that is not, and to the last that is
        ("0", 4, "000", 15),
    ],
)
def test_groups_without_a_signal_are_replaced(pattern: str, refills: int, expected: str, drawn: int) -> None:
    kept, batch, scalars, at = play(pattern, refills=refills)
    assert [t.sample_id[-1] for t in kept] == [kind for kind in expected for _ in range(MEMBERS)]
    assert [int(t.sample_id[:-2]) for t in kept] == sorted(int(t.sample_id[:-2]) for t in kept)  # in the order drawn
    assert at == drawn and scalars["rollout/replaced_groups"] == drawn - GROUPS
    assert scalars["rollout/zero_variance_groups"] == pytest.approx(expected.count("0") / GROUPS)
    learnt = np.any(np.where(batch.loss_mask, batch.extras["advantages"], 0) != 0, axis=-1)[0]
    assert learnt.tolist() == [kind == "1" for kind in expected for _ in range(MEMBERS)]
    assert batch.extras["advantages"][0, :, 0].tolist() == [t.advantage for t in kept]  # and the record says so


def test_drafts_are_counted_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"rollout/decode_passes", "rollout/accepted_tokens"}
    assert not names & play("0101")[2].keys()
    scripted = Scripted.play

    def counting(self: Scripted, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        ENGINE.stats.decoded(np.array([5, 2]), np.array([3, 2]))
        yield from scripted(self, groups)

    monkeypatch.setattr(ENGINE, "config", RolloutConfig(1, (1,), draft_tokens=2))
    monkeypatch.setattr(Scripted, "play", counting)
    batches = make_batches("0101", [])
    for _ in range(2):  # the counts of earlier steps are not counted again
        scalars = batches.next(FIRST)[1]
        assert {name: scalars[name] for name in names} == {"rollout/decode_passes": 3, "rollout/accepted_tokens": 2}


def test_what_was_cut_off_is_not_learnt_from_but_counts_in_its_group() -> None:
    kept, masked, scalars, _ = play("012", mask_overlong=True)
    _, whole, _, _ = play("012")
    assert [t.cut_off for t in kept] == [False] * 5 + [True]
    assert scalars["rollout/cut_off"] == pytest.approx(1 / 6)
    assert not masked.loss_mask[0, 5].any() and whole.loss_mask[0, 5].sum() == TURN_TOKENS
    assert np.array_equal(masked.loss_mask[0, :5], whole.loss_mask[0, :5])
    assert np.array_equal(masked.extras["advantages"], whole.extras["advantages"]) and whole.extras["advantages"][0, 4].any()


def test_length_costs_a_part_of_the_reward() -> None:
    kept, *_ = play("012", overlong_penalty=0.5, overlong_start=10, overlong_end=TURN_TOKENS)
    for trajectory in kept:
        share = (sum(trajectory.loss_mask) - 10) / (TURN_TOKENS - 10)
        assert trajectory.rewards["overlong"] == pytest.approx(-0.5 * share)
    assert kept[5].rewards["overlong"] == -0.5 < kept[0].rewards["overlong"]
    assert all("overlong" not in t.rewards for t in play("012")[0])


@pytest.mark.parametrize("tokens, expected", [(0, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (500, -1)])
def test_the_penalty_is_that_of_dapo(tokens: int, expected: float) -> None:
    """L_max 100, L_cache 20."""
    assert length_penalty(tokens, 80, 100) == expected


SCORES = [{"accuracy": 1.0}, None, {"accuracy": 0.0}]


def test_an_episode_without_a_reward_is_not_learnt_from() -> None:
    leader = Episode(
        Sample("s", "Which?", (answered.IMAGE,), "B"), answered.VITAR, answered.PROCESSOR, Limits(tokens=600, turn_tokens=200)
    )
    episodes = [leader.fork(member) for member in range(3)]
    for episode, answer in zip(episodes, (answered.RIGHT, answered.RIGHT, answered.WRONG), strict=True):
        for text in (answered.BOX, answer):
            token_ids = [*answered.PROCESSOR.chat.text(text), answered.PROCESSOR.chat.im_end]
            episode.add_turn(token_ids, [-0.5] * len(token_ids))
    records = [episode.trajectory(stream="on_policy", policy_version=0, banned_sha256="") for episode in episodes]
    trajectories = [dataclasses.replace(record, rewards=parts) for record, parts in zip(records, SCORES, strict=True)]
    trajectories = with_advantages(trajectories, GRPO())
    tokens = max(len(record.token_ids) for record in records)  # an episode a row
    shape = BatchShape(1, rows=3, tokens=tokens, images=4, size_class=answered.PROCESSOR.size_classes[-1], policy_tokens=1200)
    batch = grpo_batch(episodes, trajectories, GRPO(), shape, answered.PROCESSOR)

    written = [sum(record.loss_mask) for record in records]
    assert batch.loss_mask.sum(axis=2).tolist() == [[written[0], 0, written[2]]]
    advantages = group_advantages([1.0, 0.0], ["s", "s"])  # those of the two that are left
    assert np.array_equal(batch.extras["advantages"][0, [0, 2], 0], advantages) and not batch.extras["advantages"][0, 1].any()


class Namesakes:
    """Samples that are all called "7": an easy one, a hard one, and one that half of the group gets right."""

    def __getitem__(self, number: int) -> Sample:
        return Sample("7", ("easy?", "hard?", "mixed?")[number % 3], (IMAGE,), "B", (("A", "flat"), ("B", "rows")))


class Knowing(Scripted):
    """A player that goes by the question."""

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        for episode in (episode for group in groups for episode in group):
            right = episode.sample.question == "easy?" or (episode.sample.question == "mixed?" and episode.member == 0)
            token_ids = [*PROCESSOR.chat.text(RIGHT if right else WRONG), PROCESSOR.chat.im_end]
            episode.add_turn(token_ids, [-0.5] * len(token_ids))
            yield episode


def play_namesakes(**knobs: Any) -> tuple[list[Trajectory], dict[str, float]]:
    kept: list[Trajectory] = []
    batches = make_batches("", kept, **knobs)
    batches.samples = Namesakes()  # type: ignore[assignment]
    batches.player = lambda model, sampling: Knowing(ENGINE, PROTOCOLS["direct"], lambda: None, sampling)  # type: ignore[assignment]
    return kept, batches.next(FIRST)[1]


def test_groups_of_samples_with_one_name_are_apart() -> None:
    kept, scalars = play_namesakes()
    assert [t.advantage for t in kept] == pytest.approx([0, 0, 0, 0, 0.5**0.5, -(0.5**0.5)], abs=1e-5)
    assert scalars["rollout/zero_variance_groups"] == pytest.approx(2 / 3)
    assert [(t.sample_id, t.group_id, t.member) for t in kept] == [
        ("7", group, member) for group in ("7", "7#1", "7#2") for member in range(MEMBERS)
    ]


def test_a_replaced_groups_name_is_not_taken_again() -> None:
    """Rounds: easy, hard and mixed; easy and hard; mixed and easy. The last easy one stays."""
    kept, scalars = play_namesakes(refills=2)
    assert scalars["rollout/replaced_groups"] == 4
    assert list(dict.fromkeys(t.group_id for t in kept)) == ["7#2", "7#5", "7#6"]


BAD = {
    "image": lambda: Sample("bad-1", "Which?", ("nowhere.png",), "B"),
    "thin": lambda: Sample("bad-1", "Which?", (noise(336, 28),), "B"),
    "too_long": lambda: Sample("bad-1", "why " * 400, (IMAGE,), "B"),
    "many_images": lambda: Sample("bad-1", "Which?", (IMAGE,) * 5, "B"),
    "no_answer": lambda: Sample("bad-1", "Which?", (IMAGE,), ""),
    "data": lambda: (_ for _ in ()).throw(DataError("record 1")),
    "bug": lambda: (_ for _ in ()).throw(KeyError("record 1")),
}


class WithBad(Samples):
    """Samples of which every fifth, from the second on, is bad."""

    def __init__(self, bad: str):
        super().__init__("1", IMAGE)
        self.bad = bad

    def __getitem__(self, number: int) -> Sample:
        return BAD[self.bad]() if number % 5 == 1 else super().__getitem__(number)


@pytest.mark.parametrize(
    "bad, kind",
    [
        ("image", "image"),
        ("thin", "image"),
        ("too_long", "too_long"),
        ("many_images", "too_long"),
        ("data", "data"),
        ("no_answer", "data"),
    ],
)
def test_a_sample_that_cannot_be_played_is_replaced_by_the_next(bad: str, kind: str) -> None:
    kept: list[Trajectory] = []
    batches = make_batches("1", kept)
    batches.samples = WithBad(bad)  # type: ignore[assignment]
    batches.next(FIRST)
    _, scalars = batches.next(FIRST)
    assert [t.sample_id for t in kept] == [f"{n}-1" for n in (0, 2, 3, 4, 5, 7) for _ in range(MEMBERS)]
    assert batches.taken == 8 and {name: value for name, value in scalars.items() if "data/skipped" in name and value} == {
        "data/skipped": 2,
        f"data/skipped/{kind}": 2,
    }
    again = make_batches("1", [])
    again.samples = batches.samples
    again.set_state(json.loads(json.dumps(batches.get_state())))
    kept.clear()
    for made in (batches, again):
        made.next(FIRST)
    assert again.get_state() == batches.get_state() and kept[0].sample_id == "8-1"
    again.set_state({"taken": 3})  # of an older checkpoint
    assert again.get_state() == {"taken": 3, **dict.fromkeys(Skips().get_state(), 0)}


def test_a_sample_stream_of_bad_samples_and_a_bug_end_the_run() -> None:
    batches = make_batches("1", [])
    batches.samples = WithBad("bug")  # type: ignore[assignment]
    with pytest.raises(KeyError, match="record 1"):
        batches.next(FIRST)
    batches = make_batches("1", [])
    batches.samples = [BAD["image"]()] * 100
    with pytest.raises(DataError, match="51 of 51 consecutive records .* sample bad-1: nowhere.png: file does not exist"):
        batches.next(FIRST)


def test_the_std_may_be_that_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all processes, as in TRL's `scale_rewards="batch"`."""
    rewards = [1.0, 0.5, math.nan, 0.2, 0.2, 0.9]
    played = answered.play(answered.RIGHT)
    trajectories = [
        dataclasses.replace(played, group_id=group, rewards=None if math.isnan(reward) else {"mine": reward})
        for group, reward in zip("aabbcc", rewards, strict=True)
    ]
    given = torch.tensor(rewards, dtype=torch.float64)
    centred = given - given.view(-1, 2).nanmean(dim=1).repeat_interleave(2)
    alone = [t.advantage for t in with_advantages(trajectories, GRPO(batch_std=True, epsilon=1e-4))]
    assert alone == pytest.approx((centred / (nanstd(given) + 1e-4)).nan_to_num().tolist(), rel=1e-6)
    monkeypatch.setattr("vitar_jax.learning.grpo_batches.gather_json", lambda own: [own, [0.0, 4.0]])
    shared = [t.advantage for t in with_advantages(trajectories, GRPO(batch_std=True, epsilon=1e-4))]
    both = torch.tensor([*rewards, 0.0, 4.0], dtype=torch.float64)
    assert shared == pytest.approx((centred / (nanstd(both) + 1e-4)).nan_to_num().tolist(), rel=1e-6)


def test_what_is_played_next_follows_from_the_position() -> None:
    kept: list[Trajectory] = []
    again: list[Trajectory] = []
    batches, restarted = make_batches("0101", kept, refills=1), make_batches("0101", again, refills=1)
    batches.next(FIRST)
    restarted.set_state(json.loads(json.dumps(batches.get_state())))
    kept.clear()
    batches.next(FIRST)
    restarted.next(FIRST)
    assert [t.sample_id for t in kept] == [t.sample_id for t in again]
    assert int(kept[0].sample_id[:-2]) >= 5  # after those of the first step
