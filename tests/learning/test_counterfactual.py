"""Members of a group that are played without the image: what the others are paid above them, and their records."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.kit import micro, streams
from vitar_jax.data.interventions import find_change
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import TrajectoryWriter, read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.report_episode import episode, row
from vitar_jax.experiment.build import batch_shape
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.advantages import earned_above, group_advantages
from vitar_jax.learning.counterfactual import CounterfactualConfig, counterfactual_advantages
from vitar_jax.learning.experts import ExpertsConfig
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_batches import GRPOBatches
from vitar_jax.learning.replay import Replay

GROUPS, MEMBERS, WITHOUT = streams.GROUPS, streams.MEMBERS, 2

# The advantage


def independent(real: np.ndarray, blank: np.ndarray, weight: float, ddof: int, std: float | None) -> tuple[np.ndarray, ...]:
    """The advantages of [groups, members] in whole arrays: with the image, and without it if that is learnt."""
    above = (real - weight * blank.mean(axis=1, keepdims=True)).clip(0)
    below = (real[:, None] - weight * blank[..., None]).clip(0).mean(axis=-1)
    return tuple(
        (pay - pay.mean(axis=1, keepdims=True)) / ((own.std(axis=1, ddof=ddof, keepdims=True) if std is None else std) + 1e-6)
        for pay, own in ((above, real), (below, blank))
    )


@pytest.mark.parametrize("weight, ddof, std", [(1.0, 1, None), (2.0, 0, None), (0.5, 1, 0.7)])
def test_advantages_equal_an_independent_form(weight: float, ddof: int, std: float | None) -> None:
    rng = np.random.default_rng(0)
    real, blank = rng.uniform(0, 3, (5, 8)), rng.uniform(0, 1.5, (5, 3))
    order = rng.permutation(5 * 11)
    rewards, ids = np.concatenate([real, blank], axis=1).ravel()[order], np.repeat([*"abcde"], 11)[order]
    without = np.tile(np.arange(11) >= 8, 5)[order]
    back = np.argsort(order)
    for learn in (False, True):
        config = CounterfactualConfig(weight=weight, learn=learn)
        found = counterfactual_advantages(rewards, ids, without, config, ddof=ddof, std=std)[back].reshape(5, 11)
        expected, of_blank = independent(real, blank, weight, ddof, std)
        np.testing.assert_allclose(found[:, :8], expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found[:, 8:], of_blank if learn else 0, rtol=1e-10, atol=1e-10)
    plain = counterfactual_advantages(rewards, ids, without, config, scale=False)[back].reshape(5, 11)[:, :8]
    np.testing.assert_allclose(plain, independent(real, blank, weight, 0, 1 - 1e-6)[0], atol=1e-10)


@pytest.mark.parametrize("right", range(5))
def test_a_group_weighs_as_much_as_its_image_earns(right: int) -> None:
    """With rewards of 0 and 1, the advantages are those of GRPO times the share of wrong answers without the image."""
    real, blank = [1.0, 0.0, 1.0, 1.0, 0.0], [1.0] * right + [0.0] * (4 - right)
    without = np.repeat([False, True], [5, 4])
    found = counterfactual_advantages([*real, *blank], ["s"] * 9, without, CounterfactualConfig())[:5]
    np.testing.assert_allclose(found, group_advantages(real, ["s"] * 5) * (1 - right / 4), rtol=1e-6, atol=1e-12)
    naive = group_advantages(np.array(real) - np.mean(blank), ["s"] * 5)
    np.testing.assert_allclose(naive, group_advantages(real, ["s"] * 5), rtol=1e-6)  # a difference alone teaches nothing


def test_missing_rewards_count_nowhere() -> None:
    nan, config = np.nan, CounterfactualConfig(learn=True)
    rewards, without = [1.0, nan, 0.5, 0.25, nan], np.array([False, False, False, True, True])
    found = counterfactual_advantages(rewards, ["s"] * 5, without, config)
    assert found.tolist() == pytest.approx([0.25 / (0.5 / 2**0.5 + 1e-6), 0, -0.25 / (0.5 / 2**0.5 + 1e-6), 0, 0])
    for lacking in ([nan, nan, nan, 0.2, 0.4], [1.0, 0.5, 0.2, nan, nan]):
        assert not counterfactual_advantages(lacking, ["s"] * 5, without, config).any()
    assert np.isnan(earned_above([1.0], [nan], 1.0)).all()


def gradient(follow: float, sees: float, weight: float | None) -> float:
    """The expected policy gradient, by enumeration, of the probability with which a policy follows a hint in the question.

    The hint is right in 80 % of questions. Otherwise the policy answers from the image, and is right with the probability
    `sees`, or a quarter of the time without the image, where it follows the hint as often. A group is two episodes with the
    image and one without; `weight` of None is plain GRPO.
    """
    total = 0.0
    for hint, chance in ((1.0, 0.8), (0.0, 0.2)):
        said = [(True, hint, follow)] + [(False, right, (1 - follow) * p) for right, p in ((1.0, sees), (0.0, 1 - sees))]
        guessed = follow * hint + (1 - follow) / 4
        blind = [(1.0, guessed), (0.0, 1 - guessed)]
        for one, other, (blank, likely) in itertools.product(said, said, blind):
            rewards, without = [one[1], other[1], blank], np.array([False, False, True])
            if weight is None:
                advantages = np.append(group_advantages(rewards[:2], ["s", "s"], scale=False), 0)
            else:
                config = CounterfactualConfig(weight=weight)
                advantages = counterfactual_advantages(rewards, ["s"] * 3, without, config, scale=False)
            scores = [1 / follow if followed else -1 / (1 - follow) for followed, *_ in (one, other)]
            total += chance * likely * one[2] * other[2] * float(np.dot(advantages[:2], scores))
    return total


def test_a_hint_that_pays_is_learnt_by_grpo_and_unlearnt_above_the_blank_image() -> None:
    for follow in (0.2, 0.5, 0.9):
        assert gradient(follow, sees=0.7, weight=None) == pytest.approx(0.8 * 0.3 - 0.2 * 0.7)  # to the end
    assert gradient(0.5, sees=0.7, weight=1.0) < -0.02 and gradient(0.9, sees=0.7, weight=1.0) < -0.1
    assert gradient(0.5, sees=0.4, weight=1.0) < gradient(0.5, sees=0.4, weight=None) / 3  # as far as it can see


# Playing


class Seeing(streams.Scripted):
    """A player that tells whether the image is grey. Of the sample 4-12, one member is right, and two without the image."""

    def play(self, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        chat = streams.PROCESSOR.chat
        for group in groups:
            for place, played in enumerate(group):
                grey = np.ptp(np.asarray(played.images[0].pixels)) == 0
                right = place < int(played.sample.sample_id[-1 if grey else -2])
                answer = write_turn("So.", "Terminate", answer="AB"[right])
                for text in (write_turn("spot", "Gaze", box=[[2, 2, 60, 60]]), answer):
                    token_ids = [*chat.text(text), chat.im_end]
                    played.add_turn(token_ids, [-0.5] * len(token_ids))
                yield played


CONFIG = CounterfactualConfig(episodes=WITHOUT)


def make_batches(pattern: Sequence[str], kept: list[Trajectory], config: Any = CONFIG, **knobs: Any) -> GRPOBatches:
    batches = streams.make_batches(pattern, kept, counterfactual=config, **knobs)  # type: ignore[arg-type]
    engine: Any = SimpleNamespace(
        pool=ThreadPoolExecutor(2),
        processor=streams.PROCESSOR,
        limits=streams.LIMITS,
        banned_sha256="",
        **streams.COUNTED,
    )
    batches.player = lambda model, sampling: Seeing(engine, streams.PROTOCOL, lambda: None, sampling)  # type: ignore[arg-type]
    batches.change = config and find_change(config.intervention)
    return batches


def of(kept: Iterable[Trajectory], stream: str) -> list[Trajectory]:
    return [t for t in kept if t.stream == stream]


def test_members_without_the_image_are_recorded_and_left_out_of_the_batch() -> None:
    kept: list[Trajectory] = []
    batch, scalars = make_batches(["10", "11", "12"], kept).next(streams.FIRST)
    assert [(t.stream, t.member) for t in kept[:4]] == [  # they take turns
        ("on_policy", 0), ("counterfactual", 2), ("on_policy", 1), ("counterfactual", 3),
    ]  # fmt: skip
    real, blank = of(kept, "on_policy"), of(kept, "counterfactual")
    assert all(t.metadata["intervention"] == "blank" and t.advantage is None and t.rewards for t in blank)
    assert all("intervention" not in t.metadata for t in real)
    assert [t.group_id for t in real] == [t.group_id for t in blank]
    assert batch.loss_mask.sum() == sum(sum(t.loss_mask) for t in real)
    assert (batch.patch_positions[0, ..., 0].max(axis=(1, 2)) >= 0).sum() == len({i.sha256 for t in real for i in t.images})
    pay = {"0-10": 1.0, "1-11": 0.5, "2-12": 0.0}  # of what separates right from wrong
    gap = real[0].reward - real[1].reward
    for t in real:
        expected = (1 if t.predicted_answer == "B" else -1) * pay[t.group_id] * gap / 2 / (gap / 2**0.5 + 1e-6)
        assert t.advantage == pytest.approx(expected, abs=1e-9)
    alone, without = streams.play(["1", "1", "1"])[2], {k: v for k, v in scalars.items() if "counterfactual" in k}  # type: ignore[arg-type]
    assert {k: v for k, v in scalars.items() if k not in without and "timing" not in k} == {
        k: v for k, v in alone.items() if "timing" not in k
    }
    assert without["counterfactual/reward/mean"] == pytest.approx(np.mean([t.reward for t in blank]))
    assert without["counterfactual/added"] == pytest.approx(0, abs=1e-12)  # half are right of either
    assert without["counterfactual/unpaid_groups"] == pytest.approx(1 / 3)


def test_without_the_option_a_step_is_what_it_was() -> None:
    kept: list[Trajectory] = []
    batch, scalars = make_batches(["10", "00", "10"], kept, None).next(streams.FIRST)
    before, same, numbers = streams.play("101")
    assert [t.advantage for t in kept] == [t.advantage for t in before] and not of(kept, "counterfactual")
    assert set(batch.extras) == set(same.extras) and scalars.keys() == numbers.keys()
    assert all(np.array_equal(batch.extras[name], same.extras[name]) for name in same.extras)


def test_members_without_the_image_may_be_learnt_from() -> None:
    kept: list[Trajectory] = []
    config = CounterfactualConfig(learn=True)
    batch, _ = make_batches(["11", "22", "10"], kept, config).next(streams.FIRST)
    assert batch.loss_mask.sum() == sum(sum(t.loss_mask) for t in kept)
    blank = {t.member: t for t in of(kept, "counterfactual") if t.group_id == "0-11"}
    assert blank[2].predicted_answer == "B" and (blank[2].advantage or 0) < 0 < (blank[3].advantage or 0)
    found = batch.extras["advantages"][0, batch.loss_mask[0]]
    assert set(found.tolist()) == {np.float32(t.advantage) for t in kept}


def test_a_group_in_which_the_image_adds_nothing_is_replaced() -> None:
    kept: list[Trajectory] = []
    batches = make_batches(["12", "20", "10"], kept, refills=9)
    batches.next(streams.FIRST)
    assert [t.group_id for t in of(kept, "on_policy")[::MEMBERS]] == ["2-10", "5-10", "8-10"] and batches.taken == 9


def test_a_sample_without_what_the_intervention_needs_is_skipped() -> None:
    class Boxed(streams.Samples):
        def __getitem__(self, number: int) -> Sample:
            box = (Box(10, 10, 40, 40, "original"),)
            return Sample(f"{number}-10", "Which?", (self.image,), "B", (("A", "x"), ("B", "y")), box if number % 2 else ())

    kept: list[Trajectory] = []
    batches = make_batches(["10"], kept, CounterfactualConfig(intervention="region_erased", episodes=1))
    batches.samples = Boxed("1", streams.IMAGE)  # type: ignore[assignment]
    _, scalars = batches.next(streams.FIRST)
    assert [t.sample_id for t in of(kept, "counterfactual")] == ["1-10", "3-10", "5-10"]
    assert scalars["data/skipped/data"] == batches.skips.get_state()["skipped_data"] == 3
    erased = np.asarray(of(kept, "counterfactual")[0].images[0].pixels)
    assert np.ptp(erased[12:38, 12:38], axis=(0, 1)).max() == 0 < np.ptp(erased, axis=(0, 1)).min()


def test_an_experts_members_follow_and_replay_knows_the_policys_alone(tmp_path: Path) -> None:
    kept: list[Trajectory] = []
    experts = ExpertsConfig(traces=(streams.ADDRESS,), searches=3)
    batch, scalars = make_batches(["11"], kept, experts=experts).next(streams.FIRST)
    members = {stream: [t.member for t in of(kept, stream)[: 9 // GROUPS]] for stream in ("counterfactual", "expert")}
    assert members["expert"] == [4, 5, 6] and members["counterfactual"][:2] == [2, 3]
    theirs = group_advantages([t.reward for t in of(kept, "expert")], [t.group_id for t in of(kept, "expert")])
    assert [t.advantage for t in of(kept, "expert")] == theirs.tolist() and scalars["expert/missing"] == 0
    assert batch.loss_mask.sum() == sum(sum(t.loss_mask) for t in kept if t.stream != "counterfactual")
    replay = Replay(ExpertsConfig(replay="best"), tmp_path, 0)
    replay.keep(kept)
    assert {json.loads(line)["stream"] for line in (tmp_path / "trajectories.jsonl").open()} == {"on_policy"}


def test_what_is_played_next_follows_from_the_position() -> None:
    kept: list[Trajectory] = []
    again: list[Trajectory] = []
    batches, restarted = make_batches(["10", "12"], kept), make_batches(["10", "12"], again)
    batches.next(streams.FIRST)
    restarted.set_state(json.loads(json.dumps(batches.get_state())))
    kept.clear()
    for one in (batches, restarted):
        one.next(streams.FIRST)
    assert kept == again


def test_records_and_reports_name_the_intervention(tmp_path: Path) -> None:
    kept: list[Trajectory] = []
    make_batches(["10"], kept).next(streams.FIRST)
    TrajectoryWriter(tmp_path).write(kept)
    read = [*read_trajectories(tmp_path)]
    assert [t.to_json() for t in read] == [t.to_json() for t in kept]
    shown = [(episode(t, 1.0, "exact", None, None), row(t, 1.0, "exact")) for t in read[:2]]
    assert [(page.get("intervention"), line.get("metadata/intervention"), line["stream"]) for page, line in shown] == [
        (None, None, "on_policy"),
        ("blank", "blank", "counterfactual"),
    ]


# Recipes


def test_a_recipe_makes_room_for_members_that_are_learnt_from() -> None:
    shapes = []
    for counterfactual in (None, dict(episodes=2), dict(episodes=2, learn=True)):
        config: Any = micro.get_config()
        config.stages.grpo.objective.counterfactual = counterfactual
        recipe = Recipe.from_config(config)
        shapes.append(batch_shape(recipe, recipe.stages["grpo"], bins=1, shards=1))
    plain, unlearnt, learnt = shapes
    assert unlearnt == plain and learnt.rows == 2 * plain.rows == 8
    # Two samples, each with its image and without it, and a zoomed image per row.
    assert (plain.images, learnt.images) == (2 + 4, 4 + 8)


@pytest.mark.parametrize(
    "keys, message",
    [
        (dict(intervention="blnk"), "objective.counterfactual.intervention: unknown intervention 'blnk', did you mean blank"),
        (dict(intervention="erase_masks"), "objective.counterfactual.intervention: .*needs the masks of an earlier run"),
        (dict(episodes=0), "objective.counterfactual.episodes: must be positive"),
        (dict(weight=0.0), "objective.counterfactual.weight: must be positive"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CounterfactualConfig(**keys)


def test_a_union_of_streams_has_no_pay_of_its_own() -> None:
    with pytest.raises(ConfigError, match="experts.scope: must not be 'union' with counterfactual"):
        GRPO(experts=ExpertsConfig(traces=("x.jsonl",), scope="union"), counterfactual=CONFIG)
