"""The expert's stream: which searches a step takes, how they are played, and what a batch of both streams is."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit import micro, streams
from tests.kit.streams import ADDRESS, FIRST, GROUPS, IMAGE, MEMBERS, PROCESSOR, PROTOCOL, SEARCHES, make_batches, play
from vitar_jax.data.traces import Trace
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.experts import play_demonstration
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError, TooLongError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.advantages import group_advantages
from vitar_jax.learning.experts import ExpertsConfig, choose
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_batches import with_advantages

SAMPLE = Sample("0-1", "Which?", (IMAGE,), "B", (("A", "flat"), ("B", "rows")))
EXPERTS = ExpertsConfig(traces=(ADDRESS,), searches=SEARCHES)


def experts(**keys: Any) -> ExpertsConfig:
    return dataclasses.replace(EXPERTS, **keys)


def by_stream(kept: list[Any], stream: str) -> list[Any]:
    return [t for t in kept if t.stream == stream]


def test_a_search_becomes_the_record_of_a_policy_that_wrote_the_same() -> None:
    kept, _, _ = play("1", experts=EXPERTS)
    found = by_stream(kept, "expert")[0]
    policy = Episode(SAMPLE, PROTOCOL, PROCESSOR, streams.LIMITS, member=MEMBERS)
    for turn in found.turns:
        ids = list(found.token_ids[turn.start : turn.end])
        policy.add_turn(ids, [-0.5] * len(ids))
    wanted = policy.trajectory(stream="on_policy", policy_version=0, banned_sha256="")
    differing = {f.name for f in dataclasses.fields(found) if getattr(found, f.name) != getattr(wanted, f.name)}
    assert differing == {"stream", "logprobs", "rewards", "advantage", "metadata"}
    assert [i.sha256 for i in found.images] == [i.sha256 for i in wanted.images] and set(found.logprobs) == {None}
    assert found.metadata == {"search": 0, "modes": ["drill", "drill"], "confidences": [0.1, 0.2]}
    assert [turn.carried_out for turn in found.turns] == [True, True, False] and found.predicted_answer == "B"


def test_a_search_is_played_under_medeyes_protocol() -> None:
    episode = Episode(SAMPLE, PROTOCOLS["medeyes"], PROCESSOR, Limits(tokens=2000, turn_tokens=200))
    play_demonstration(streams.searches(SAMPLE)[0].demonstration(), episode)
    assert [turn.call.name if turn.call else None for turn in episode.turns] == ["Gaze", "Gaze", None]
    assert episode.predicted_answer == "B" and len(episode.images) == 3


def test_a_batch_says_of_each_token_whose_it_is() -> None:
    kept, batch, _ = play("1", experts=EXPERTS)
    assert len(kept) == GROUPS * (MEMBERS + SEARCHES)
    expert, mask = batch.extras["expert"], batch.loss_mask
    assert set(batch.extras) == {"advantages", "old_logprobs", "expert"}
    counts = {stream: sum(sum(t.loss_mask) for t in by_stream(kept, stream)) for stream in ("on_policy", "expert")}
    assert (mask & (expert == 1)).sum() == counts["expert"] and (mask & (expert == 0)).sum() == counts["on_policy"]
    assert not batch.extras["old_logprobs"][expert == 1].any()
    assert set(batch.extras["old_logprobs"][mask & (expert == 0)].tolist()) == {-0.5}
    assert not mask[batch.vision_index >= 0].any()
    for segment in range(1, batch.segment_ids.max() + 1):  # a sequence is of one stream
        here = batch.segment_ids == segment
        assert all(len(set(row[inside].tolist())) <= 1 for row, inside in zip(expert[0], here[0], strict=True))
    # All episodes show the prompt's image once, and each look of either stream shows its own.
    looks = {image.sha256 for t in kept for image in t.images}
    assert (batch.patch_positions[0, ..., 0].max(axis=(1, 2)) >= 0).sum() == len(looks) == 1 + 1 + 4


def test_streams_of_a_group_take_turns_in_what_is_kept() -> None:
    kept, _, _ = play("1", experts=EXPERTS)
    assert [t.stream for t in kept[:5]] == ["on_policy", "expert", "on_policy", "expert", "expert"]
    assert [t.member for t in kept[:5]] == [0, 2, 1, 3, 4] and len({t.group_id for t in kept[:5]}) == 1


REWARDS = {"0": 0.4, "2": 1.4}


@pytest.mark.parametrize("scope", ["stream", "union", "policy", "batch"])
def test_scopes_choose_whose_statistics_make_an_experts_advantage(scope: Any) -> None:
    kept, batch, _ = play("012", experts=experts(scope=scope))
    alone, _, _ = play("012")
    theirs = [t.reward for t in by_stream(kept, "expert")]
    for number in range(GROUPS):
        group = [t for t in kept if t.group_id.startswith(str(number))]
        ours, expert = (np.array([t.reward for t in by_stream(group, s)]) for s in ("on_policy", "expert"))
        pool = {"stream": expert, "union": np.array([*ours, *expert]), "policy": ours, "batch": np.array(theirs)}[scope]
        std = np.std(pool, ddof=1)
        expected = (expert - pool.mean()) / ((std if std > 1e-9 else 1.0) + 1e-6)
        assert [t.advantage for t in by_stream(group, "expert")] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        if scope != "union":
            before = [t.advantage for t in alone if t.group_id.startswith(str(number))]
            assert [t.advantage for t in by_stream(group, "on_policy")] == before
    if scope == "union":
        everyone = group_advantages([t.reward for t in kept], [t.group_id for t in kept])
        assert [t.advantage for t in kept] == everyone.tolist()
    learnt = batch.extras["advantages"][batch.extras["expert"] == 1]
    assert set(learnt.tolist()) == {np.float32(t.advantage) for t in by_stream(kept, "expert")}


def test_the_statistics_of_a_batch_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _, _ = play("012", experts=experts(scope="batch"))
    first, rest = kept[:5], kept[5:]  # the groups of two processes
    objective = GRPO(group_size=MEMBERS, experts=experts(scope="batch"))
    theirs = [t.reward for t in by_stream(rest, "expert")]
    monkeypatch.setattr("vitar_jax.learning.grpo_batches.gather_json", lambda own: [own, theirs])
    assert [t.advantage for t in with_advantages(first, objective)] == [t.advantage for t in first]


def test_experts_may_be_left_out_where_the_policy_is_right() -> None:
    kept, batch, _ = play("012", experts=experts(use="where_stuck", scope="policy"))
    used = {t.group_id: t.advantage is not None for t in by_stream(kept, "expert")}
    assert used == {"0-0": True, "1-1": False, "2-2": False}
    learnt = batch.loss_mask & (batch.extras["expert"] == 1)
    assert learnt.sum() == sum(sum(t.loss_mask) for t in by_stream(kept, "expert") if t.group_id == "0-0")
    assert all(t.advantage is not None for t in by_stream(kept, "on_policy"))


@pytest.mark.parametrize("supervise", ["all", "right"])
def test_the_supervised_term_learns_from_all_or_from_right_searches(supervise: Any) -> None:
    objective = experts(mu_peak=0.4, mu_decay=4, supervise=supervise)
    kept, batch, _ = play("1", experts=objective)
    taught = [t for t in by_stream(kept, "expert") if supervise == "all" or t.predicted_answer == "B"]
    assert len(taught) == GROUPS * (3 if supervise == "all" else 2)
    assert (batch.loss_mask & (batch.extras["supervised"] == 1)).sum() == sum(sum(t.loss_mask) for t in taught)
    assert set(batch.extras["mu"][batch.segment_ids > 0].tolist()) == {np.float32(0.4)}
    batches = make_batches("1", [], experts=objective)
    later = batches.next(type(FIRST)(step=2, model=None))[0]
    assert later.extras["mu"].max() == np.float32(0.2)  # half of the decay
    assert tuple(sorted(later.extras)) == tuple(sorted(batches.objective.extras))


def test_a_refill_replaces_groups_without_a_signal_in_either_stream() -> None:
    """In groups 0 and 2 the policy's episodes are equal. Their searches are not, unless only the right ones are there."""
    assert play("0101", refills=3, experts=EXPERTS)[2]["rollout/replaced_groups"] == 0
    equal = experts(traces=(f"{__name__}:equal_searches",))
    kept, _, scalars = play("0101", refills=3, experts=equal)
    assert scalars["rollout/replaced_groups"] == 3 and {t.sample_id[-1] for t in kept} == {"1"}
    assert scalars["expert/flat_groups"] == 1 and scalars["expert/distinct"] == pytest.approx(1 / 3)
    # By the policy's statistics, equal searches teach where the policy is worse.
    assert play("0101", refills=3, experts=dataclasses.replace(equal, scope="policy"))[2]["rollout/replaced_groups"] == 0
    where_stuck = dataclasses.replace(equal, scope="policy", use="where_stuck")
    assert play("0202", refills=1, experts=where_stuck)[2]["rollout/replaced_groups"] == 1


def equal_searches(sample: Sample) -> list[Trace]:
    return [dataclasses.replace(streams.searches(sample)[0], search=number) for number in range(3)]


def test_length_and_cuts_are_of_the_policy_alone() -> None:
    keys: dict[str, Any] = dict(overlong_penalty=0.5, overlong_start=10, overlong_end=40, mask_overlong=True)
    kept, batch, _ = play("1", experts=EXPERTS, **keys)
    assert all("overlong" not in t.rewards for t in by_stream(kept, "expert"))
    assert all(t.rewards["overlong"] < 0 for t in by_stream(kept, "on_policy"))
    assert (batch.loss_mask & (batch.extras["expert"] == 1)).any()


def test_metrics_say_what_each_stream_did() -> None:
    kept, _, scalars = play("012", experts=EXPERTS)
    alone = play("012")[2]
    assert {name: scalars[name] for name in alone if not name.startswith("timing")} == {
        name: value for name, value in alone.items() if not name.startswith("timing")
    }
    theirs = by_stream(kept, "expert")
    new = {name: scalars[name] for name in scalars.keys() - alone.keys() if not name.startswith("timing")}
    expected = {"mean": np.mean([t.reward for t in theirs])}
    expected |= {part: np.mean([t.rewards[part] for t in theirs]) for part in theirs[0].rewards}
    assert new == pytest.approx(
        {f"expert/reward/{part}": value for part, value in expected.items()}
        | {"expert/flat_groups": 0, "expert/distinct": 1, "expert/missing": 0, "expert/gazes": 4 / 3}
        | {"expert/tokens": np.mean([sum(t.loss_mask) for t in theirs])}
    )
    assert scalars["rollout/gazes"] == 1 and scalars["timing_s/experts"] >= 0


# Which searches a step takes


def some(pattern: str) -> list[Trace]:
    return [streams.trace("s", number, letter, streams.box(number)) for number, letter in enumerate(pattern)]


def drawn(pattern: str, seed: int, **keys: Any) -> list[int]:
    return [trace.search for trace in choose(some(pattern), experts(**keys), np.random.default_rng(seed))]


def test_the_first_searches_are_taken_or_random_ones_in_order() -> None:
    assert drawn("BBBBBB", 0) == [0, 1, 2] and drawn("BA", 0, draw="random") == [0, 1]
    found = [drawn("BBBBBB", seed, draw="random") for seed in range(200)]
    assert all(one == sorted(set(one)) and len(one) == 3 for one in found)
    counts = np.bincount(np.ravel(found))
    assert counts.min() > 70 and counts.max() < 130  # a half of 200 each


@pytest.mark.parametrize("pattern, right", [("BBBBBA", 2), ("AAAAAB", 1), ("BBBBBB", 3), ("AAAAAA", 0), ("AAABBB", 1)])
def test_a_mixed_draw_has_right_and_wrong_searches_where_there_are_both(pattern: str, right: int) -> None:
    for seed in range(10):
        found = drawn(pattern, seed, draw="mixed")
        assert len(set(found)) == 3 and sum(pattern[number] == "B" for number in found) == right


def test_searches_follow_from_seed_sample_and_step_alone() -> None:
    def taken(step: int, skip: int = 0) -> dict[str, list[int]]:
        kept: list[Any] = []
        batches = make_batches("1", kept, experts=experts(draw="random"))
        batches.taken = skip
        batches.next(type(FIRST)(step=step, model=None))
        groups = {t.sample_id: [] for t in by_stream(kept, "expert")}
        for t in by_stream(kept, "expert"):
            groups[t.sample_id].append(t.metadata["search"])
        return groups

    first = taken(0)
    second = taken(1)
    assert taken(0) == first and second != first and len(set(map(tuple, second.values()))) > 1
    assert taken(0, skip=1)["2-1"] == first["2-1"]


# When something is wrong


def two_searches(sample: Sample) -> list[Trace]:
    return streams.searches(sample)[: 2 if sample.sample_id.startswith("1") else 3]


def no_search(sample: Sample) -> list[Trace]:
    return []


def other_image(sample: Sample) -> list[Trace]:
    return [dataclasses.replace(trace, image_sha256="0" * 64) for trace in streams.searches(sample)]


def not_traces(sample: Sample) -> list[Any]:
    return ["search"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("two_searches", r"sample 1-1: got 2 searches, expected experts.searches=3; .*:two_searches; experts.missing='skip'"),
        ("no_search", "sample 0-1: got 0 searches, expected experts.searches=3"),
        ("other_image", "sample '0-1': its image has the hash"),
        ("not_traces", "sample 0-1: got str, expected a Trace"),
    ],
)
def test_what_is_missing_or_of_another_image_ends_the_run(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        play("1", experts=experts(traces=(f"{__name__}:{name}",)))


def test_missing_searches_may_be_skipped_and_are_counted() -> None:
    kept, batch, scalars = play("1", experts=experts(traces=(f"{__name__}:two_searches",), missing="skip"))
    assert scalars["expert/missing"] == pytest.approx(1 / 9)
    assert [t.sample_id[0] for t in by_stream(kept, "expert")].count("1") == 2 and batch.loss_mask.any()
    with pytest.raises(DataError, match="its image has the hash"):
        play("1", experts=experts(traces=(f"{__name__}:other_image",), missing="skip"))


def test_traces_of_another_data_set_end_the_run_even_if_missing_ones_may_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(some("B")[0].to_json()) + "\n")
    batches = make_batches("1", [], experts=experts(traces=(str(tmp_path),), missing="skip"))
    with pytest.raises(DataError, match=r"none of the first 102 samples has a search; .* those of 1 samples, such as 's'"):
        for _ in range(40):
            assert batches.next(FIRST)[1]["expert/missing"] == 1


@pytest.mark.parametrize(
    "limits, needed",
    [
        (Limits(tokens=140, turn_tokens=100), r"of 9 dialogues exceed the limits; they need up to \d+ tokens .limits.tokens"),
        (Limits(tokens=500, turn_tokens=100, images=2), r"3 of 9 dialogues .* 3 images \(limits.images\)"),
        (Limits(tokens=500, turn_tokens=22), r"9 of 9 dialogues .*, \d+ tokens per turn \(limits.turn_tokens\)"),
    ],
)
def test_dialogues_over_the_limits_say_how_many_and_what_they_need(limits: Limits, needed: str) -> None:
    with pytest.raises(TooLongError, match=needed) as raised:
        play("1", limits=limits, experts=EXPERTS)
    assert "3 turns (max_turns" in str(raised.value)
    found = play("1", limits=limits, experts=experts(missing="skip"))[2]
    assert found["expert/missing"] in (1 / 3, 1)


def test_stages_without_rollouts_refuse_experts_and_configs_are_checked() -> None:
    config: Any = micro.get_config()
    config.stages.sft.objective.experts = dict(traces=(ADDRESS,))
    with pytest.raises(ConfigError, match=r"stages.sft.objective.experts: no such key; known are alarms, masks, name, pack"):
        Recipe.from_config(config)
    for key, value in (("traces", ()), ("replay", "best"), ("searches", 0)):
        with pytest.raises(ConfigError, match=f"objective.experts.*{key}"):
            experts(**{key: value})
    objective = GRPO(group_size=8, experts=experts(searches=6))
    assert objective.rows_per_sample == 14 and GRPO(group_size=8).rows_per_sample == 8
    assert objective.extras == ("advantages", "old_logprobs", "expert") and GRPO().extras == ("advantages", "old_logprobs")
