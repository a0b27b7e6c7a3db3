"""Alarms are raised when something goes wrong, once, and again after it has recovered."""

import pytest

from vitar_jax.errors import ConfigError
from vitar_jax.learning.alarms import AlarmConfig, Alarms
from vitar_jax.learning.sft import SFT


def said(name: str, values: list[float | None], config: AlarmConfig) -> list[int]:
    """Steps at which something is said."""
    alarms = Alarms(config)
    rows = [{} if value is None else {name: value} for value in values]
    return [step for step, row in enumerate(rows) if alarms.check(row)]


@pytest.mark.parametrize(
    "shares, steps",
    [
        ([0.2, 0.6, 0.9, 0.8, 0.5], []),
        ([0.2, 0.6, 0.9, 0.4, 0.1, 0.0], [3]),  # once
        ([0.9, 0.4, 0.6, 0.4], [1, 3]),  # and again
        ([0.0, 0.0], []),  # never acted
        ([0.9, None, 0.4], [2]),
    ],
)
def test_tools_collapse(shares: list[float | None], steps: list[int]) -> None:
    assert said("rollout/action_success", shares, AlarmConfig()) == steps


def test_boxes_grow() -> None:
    assert said("rollout/box_area", [0.1, 0.81, 0.9, 0.7, None, 0.9], AlarmConfig()) == [1, 5]


def test_thresholds_are_those_of_the_config() -> None:
    config = AlarmConfig(action_share=0.9, box_area=0.3)
    assert said("rollout/action_success", [1.0, 0.89], config) == [1]
    assert said("rollout/box_area", [0.29, 0.31], config) == [1]


def test_each_is_said_by_itself() -> None:
    alarms = Alarms(AlarmConfig())
    assert alarms.check({"rollout/action_success": 0.8, "rollout/box_area": 0.85}) == [
        "boxes grow to the whole image: on average they cover 85% of it"
    ]
    assert alarms.check({"rollout/action_success": 0.2, "rollout/box_area": 0.95}) == [
        "tools collapse: 20% of episodes begin with an action, it was 80%"
    ]


def test_an_expert_that_teaches_nothing_for_twenty_steps_is_said() -> None:
    alarms, said = Alarms(AlarmConfig()), []
    for step in range(5, 100, 5):
        signal = 0.0 if step <= 40 or 50 < step else 0.01
        said += [(step, line) for line in alarms.check({"step": step, "expert/signal": signal, "expert/flat_groups": 0.75})]
    assert said == [
        (20, "the expert has taught nothing since step 0: 75% of its groups have equal rewards"),
        (70, "the expert has taught nothing since step 50: 75% of its groups have equal rewards"),
    ]


def test_an_entropy_under_a_tenth_of_the_first_is_said_beside_an_expert() -> None:
    entropies = [2.0, 0.5, 0.19, 0.1, 0.3, 0.15]
    rows: list[dict[str, float]] = [{"actor/entropy": entropy} for entropy in entropies]
    alone, beside = Alarms(AlarmConfig()), Alarms(AlarmConfig())
    assert not any(alone.check(row) for row in rows)
    said = [beside.check(row | {"step": step, "expert/signal": 1.0}) for step, row in enumerate(rows)]
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 1]
    assert said[2] == ["entropy collapses: it is 0.19, and was 2 at first"]


def probes(*rows: tuple[float, float, float], config: AlarmConfig | None = None) -> list[list[str]]:
    """Returns the warnings at each probe of (reward, reliance, turns with a tool). A step without a probe precedes each."""
    alarms, said = Alarms(config or AlarmConfig()), []
    for reward, reliance, tools in rows:
        row = {"probe/reward/mean": reward, "probe/reliance/blank": reliance, "probe/tool_turns": tools}
        assert not alarms.check({"rollout/box_area": 0.1})
        said.append(alarms.check(row | {"probe/reliance/blank/changed": -reward, "probe/reliance/blur-2": 0.1}))
    return said


def test_a_reliance_that_falls_while_the_reward_rises() -> None:
    rows = [(0.5, 0.4, 1), (0.6, 0.3, 1), (0.7, 0.2, 1), (0.8, 0.1, 1), (0.9, 0.3, 1), (1.0, 0.2, 1), (1.1, 0.1, 1)]
    said = probes(*rows)
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 0, 1]  # once, and again after it has recovered
    assert said[2] == [
        "answers rely less on what blank takes away, 40% to 20%, while the reward rises, 0.5 to 0.7",
    ]
    assert [len(lines) for lines in probes(*rows[:3], config=AlarmConfig(reliance_probes=2))] == [0, 1, 0]
    with pytest.raises(ConfigError, match="alarms.reliance_probes: got 1"):
        AlarmConfig(reliance_probes=1)


@pytest.mark.parametrize(
    "rows",
    [
        [(0.5, 0.4, 1), (0.6, 0.5, 1), (0.7, 0.3, 1)],  # up and down
        [(0.5, 0.4, 1), (0.4, 0.3, 1), (0.3, 0.2, 1)],  # both fall
        [(0.5, 0.4, 1), (0.6, 0.4, 1), (0.7, 0.4, 1)],  # stays
        [(0.5, 0.4, 1), (0.6, 0.3, 1)],  # too few
    ],
)
def test_a_reliance_that_is_no_cause(rows: list[tuple[float, float, float]]) -> None:
    assert not any(probes(*rows))


def test_tools_that_fall_out_of_use() -> None:
    said = probes((1, 1, 0.5), (1, 1, 0.9), (1, 1, 0.3), (1, 1, 0.24), (1, 1, 0.1), (1, 1, 0.4), (1, 1, 0.2))
    assert [len(lines) for lines in said] == [0, 0, 0, 1, 0, 0, 1]
    assert said[3] == ["tools fall out of use: 24% of turns call one, it was 50%"]


def test_a_shortcut_that_holds_in_training_alone() -> None:
    """The reward of the probe falls with the reliance, while the mean reward in training since the last probe rises."""
    alarms, said = Alarms(AlarmConfig()), []
    for reliance, (first, second) in ((0.5, (0.4, 0.6)), (0.4, (0.9, 0.5)), (0.3, (0.7, 0.9)), (0.2, (0.1, 0.2))):
        said += alarms.check({"reward/mean": first})
        probe = {"probe/reward/mean": reliance, "probe/reliance/blank": reliance, "probe/tool_turns": 0.5}
        said += [*alarms.check({"reward/mean": second} | probe), "|"]
    assert said == [
        *("|", "|"),
        "answers rely less on what blank takes away, 50% to 30%, while the reward in training rises, 0.5 to 0.8",
        *("|", "|"),
    ]


def test_probes_of_supervised_training_raise_alarms_too() -> None:
    check, thresholds = SFT().watch(), SFT(alarms=AlarmConfig(reliance_probes=2)).watch()
    rows = [{"probe/reward/mean": n / 4, "probe/reliance/blank": 1 - n / 4, "probe/tool_turns": 1 / (n + 1)} for n in range(3)]
    assert [len(check(row)) for row in rows] == [0, 0, 2] and [len(thresholds(row)) for row in rows] == [0, 1, 1]
    assert not SFT().watch()({"actor/loss": 1.0, "probe/rollout/action_success": 0.0, "probe/rollout/box_area": 1.0})
