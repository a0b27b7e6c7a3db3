"""The device benchmark: its budget of time, its checks broken on purpose, and the command at a CPU's sizes. Judges no time."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit.errors import Main
from tests.kit.processes import run_module, simulated
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench.cases import TINY
from vitar_jax.bench.device import kernels, logits, recipes, run, speed
from vitar_jax.bench.device.kernels import Shapes, check_kernels
from vitar_jax.bench.device.parts import Check, Outcome, Part, Rates, Row, Speed, run_parts
from vitar_jax.bench.device.record import make_record, markdown
from vitar_jax.bench.device.reference import reference_logits
from vitar_jax.episodes.episode import Episode
from vitar_jax.experiment.trainer import Run
from vitar_jax.models.kernels.backend import Cached
from vitar_jax.models.kernels.xla import XLA, attend_cached
from vitar_jax.parallel.topology import H200, find_topology
from vitar_jax.plan.__main__ import make_plan

RATES = Rates(flops=800e12, bandwidth=4e12)
FACTS = {
    "device": "NVIDIA H200",
    "devices": 1,
    "dtype": "bfloat16",
    "command": "python -m vitar_jax.bench device --minutes=10",
    "date": "1 January 2026",
    "commit": "abc",
    "packages": {"jax": "0.10.2"},
}


class Clock:
    """A clock that parts move on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def part(self, name: str, expected: float, takes: float, *rows: Row) -> Part:
        def work() -> Sequence[Row]:
            self.seconds += 60 * takes
            return rows

        return Part(name, expected, work)

    def __call__(self) -> float:
        return self.seconds


def parts_left(clock: Clock, parts: Sequence[Part], minutes: float) -> dict[str, str]:
    outcomes = run_parts(parts, minutes, lambda line: None, clock=clock)
    return {outcome.name: outcome.state for outcome in outcomes}


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    """Also the last part, which alone would fit, and although each part is as long as expected."""
    clock = Clock()
    parts = [clock.part("a", 2, 2), clock.part("b", 3, 3), clock.part("c", 3, 3), clock.part("d", 0.5, 0.5)]
    assert parts_left(clock, parts, 7) == {"a": "done", "b": "done", "c": "left out", "d": "left out"}
    assert parts_left(clock, parts, 8.5) == dict.fromkeys("abcd", "done")
    assert set(parts_left(clock, parts, 1.9).values()) == {"left out"}


def test_a_part_that_takes_longer_leaves_less_to_the_next() -> None:
    clock = Clock()
    parts = [clock.part("a", 1, 4), clock.part("b", 3, 1), clock.part("c", 3, 1)]
    assert parts_left(clock, parts, 8) == {"a": "done", "b": "done", "c": "done"}
    assert parts_left(clock, parts, 7.5) == {"a": "done", "b": "done", "c": "left out"}


def test_parts_fail_apart_and_outcomes_are_kept_after_each() -> None:
    clock, said, kept = Clock(), list[str](), list[int]()

    def out_of_memory() -> Sequence[Row]:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 3 GiB")

    parts = [
        Part("memory", 1, out_of_memory),
        clock.part("above", 1, 1, Check("right", 1e-3, 1e-2), Check("wrong", 2e-2, 1e-2)),
        clock.part("not a number", 1, 1, Check("nan", float("nan"), 1e-2)),
        clock.part("fine", 1, 1, Check("right", 1e-2, 1e-2)),
    ]
    outcomes = run_parts(parts, 9, said.append, lambda outcomes: kept.append(len(outcomes)), clock)
    assert [outcome.state for outcome in outcomes] == ["failed", "failed", "failed", "done"]
    assert outcomes[0].error == "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert outcomes[1].error.startswith("1 of 2 checks") and "wrong: 2.0e-02" in outcomes[1].error
    assert len(outcomes[1].rows) == 2 and kept[:4] == [1, 2, 3, 4]
    assert sum("FAILED" in line for line in said) == 3 and all("\n" not in line for line in said)


def record(*rows: Row, error: str = "", chip: Any = H200, targets: bool = True) -> dict[str, Any]:
    outcomes = [Outcome("all", 1.0, 30.0, error, rows), Outcome("GRPO 3b", 2.2)]
    return make_record(FACTS, outcomes, chip, targets=targets)


def test_shares_are_of_the_measured_rates_and_floors_of_the_published() -> None:
    """1 s of a product at 800 TFLOP/s, or of a copy at 4 TB/s, is the whole of the rate; H200's are 989 and 4.8."""
    made = record(RATES, Speed("prefill", "7b", 2.0, flops=800e12, passed=1e9), Speed("decode", "7b", 1.6, 1e12, 4e12, 4.8e12))
    prefill, decode = made["speeds"]
    assert (prefill["share"], prefill["of"], prefill["met"]) == (pytest.approx(0.5), "matrix rate", False)
    assert (decode["share"], decode["of"], decode["met"]) == (pytest.approx(0.625), "copy rate", False)
    assert prefill["plan_seconds"] == pytest.approx(800 / 989) and decode["plan_share"] == pytest.approx(1 / 1.6)
    faster = record(RATES, Speed("prefill", "7b", 1.8, flops=800e12), Speed("decode", "7b", 1.4, 1e12, 4e12))
    assert [speed["met"] for speed in faster["speeds"]] == [True, True] and not faster["problems"]
    unknown = record(RATES, Speed("prefill", "tiny", 2.0, flops=800e12, passed=1e9), chip=None, targets=False)["speeds"][0]
    assert unknown["plan_share"] == unknown["share"] and unknown["target"] is None and "met" not in unknown


def test_a_time_below_plans_floor_is_a_problem() -> None:
    too_fast = Speed("SFT update", "3b", 0.5, flops=600e12, passed=1e9)
    assert "less than plan's floor" in record(RATES, too_fast)["problems"][0]
    assert not record(RATES, too_fast, chip=None)["problems"]  # measured rates of small products bound nothing


def test_the_table_says_what_is_missing() -> None:
    phases = {"decode": 6.0, "prefill": 1.0, "tools": 0.5, "host": 1.5, "update": 1.0}
    check = Check("cudnn, windows", 0.5, 0.02, "XLA in bf16 5.0e-03")
    text = markdown(record(check, RATES, Speed("GRPO step", "7b", 10.0, phases=phases), error="1 of 1 checks exceed"))
    assert "| cudnn, windows | 5.0e-01 | 0.02 | FAILED, XLA in bf16 5.0e-03 |" in text
    assert "| GRPO step | 7b | 10.00 s | 20% of the step, by the host | under 10% MISSED |" in text
    assert "Phases of GRPO step, 7b: decode 60%" in text and "800 TFLOP/s (bfloat16) and copies at 4000 GB/s" in text
    assert "Left out for lack of time: GRPO 3b (2.2 min)." in text and "FAILED: all: 1 of 1 checks exceed." in text
    without_rates = markdown(record(Speed("prefill", "7b", 2.0, flops=1e12)))
    assert "| prefill | 7b | 2.00 s |  | 55% |" in without_rates


SMALL = Shapes((2, 1, 8), (2, 2, 8), rows=2, tokens=24, new=4, patches=16, windows=2, window_patches=8)


def causal(segment_ids: jax.Array) -> Any:
    return XLA.causal(jnp.minimum(segment_ids, 1))  # sees other segments


def full(valid: jax.Array) -> Any:
    """Right, but for the gradient of the values of windows."""
    attend = XLA.full(valid)
    if len(valid) == 1:
        return attend
    return lambda q, k, v: attend(q, k, 0.5 * v + 0.5 * jax.lax.stop_gradient(v))


def cached(q: jax.Array, k: jax.Array, v: jax.Array, cached: Cached) -> jax.Array:
    return attend_cached(q, k, v, dataclasses.replace(cached, lengths=cached.lengths + 1))  # sees the next token


@pytest.mark.slow
def test_a_kernel_that_is_wrong_or_is_not_called_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(XLA, name="wrong", causal=causal, full=full, cached=cached, decode=cached, platform="cpu")
    absent = dataclasses.replace(XLA, name="absent", mark="tpu_custom_call", platform="cpu")
    monkeypatch.setattr(kernels, "BACK_ENDS", {"wrong": wrong, "absent": absent})
    passed = {check.name: check.passed for check in check_kernels(SMALL, "cpu")}
    assert passed == {
        "wrong, causal, segments": False,
        "wrong, full": True,
        "wrong, windows": False,
        "wrong, cached": False,
        "wrong, decode": False,
        "absent, causal, segments": False,
        "absent, full": False,
        "absent, windows": False,
        "absent, cached": False,
        "absent, decode": True,  # back ends have no kernel for one token
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_stored_logits_are_hugging_faces(name: str) -> None:
    with np.load(logits.REFERENCE) as stored:
        assert stored.files == list(TINY)
        expected = reference_logits(TINY[name])
        np.testing.assert_allclose(stored[name], expected, atol=1e-5)
        assert expected.std() > 0.5


@pytest.mark.slow
def test_logits_of_a_changed_model_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of the tower is turned round; without that the same check passes, in fp32 and bf16."""
    monkeypatch.setattr(logits, "TINY", {"tiny": TINY["tiny"]})
    assert [check.passed for check in logits.check_logits("xla")] == [True, True]
    draw = logits.weights_of

    def turned(config: Any) -> Any:
        model = draw(config)
        kernel = model.visual.patch_embed.kernel
        kernel[...] = -kernel[...]
        return model

    monkeypatch.setattr(logits, "weights_of", turned)
    assert [check.passed for check in logits.check_logits("xla")] == [False, False]


def recipe_of(model: str, memory: float, attention: str = "xla") -> Any:
    return recipes.make_recipe(recipes.CPU, model, attention, jax.local_devices(), memory)


def test_random_turns_call_the_tool(tmp_path: Path) -> None:
    recipe = recipe_of("tiny", 1e12)
    using = Run(recipe, tmp_path)
    sample = recipes.noise_samples("train", side=112, answer=3, count=1)[0]
    episode = Episode(sample, recipe.all_protocols["zoom"], using.processor, recipe.limits)
    for _ in range(2):
        assert not episode.end_reason
        episode.add_turn([5, 6, using.processor.chat.im_end], [0.0, 0.0, 0.0])
    assert len(episode.turns) == len(episode.images) == 2 and episode.end_reason == "turn_limit"


def test_a_model_that_is_too_large_trains_adapters() -> None:
    """7b needs 16 bytes for each of its 8.3 billion weights, of at most 0.6 of the memory of all devices."""
    devices = len(jax.local_devices())
    for memory, adapters in ((230e9, False), (210e9, True)):
        recipe = recipe_of("7b", memory / devices)
        assert recipes.trains_adapters(recipe) == adapters
        assert (recipe.stages["grpo"].train == ("decoder",)) == adapters


@pytest.mark.parametrize("name", ["prefill", "decode", "train"])
def test_floors_are_those_of_plan(name: str, tmp_path: Path) -> None:
    recipe, topology = recipe_of("tiny", 1e12), find_topology(f"gpu:{len(jax.local_devices())}")
    using = Run(recipe, tmp_path)
    call = using.programs.call(name, recipe.stages["sft"])
    found = speed._of_program(using, name, "sft", Speed(name, "tiny", 1.0), call)
    plan = make_plan(using.programs, name, "sft", topology)
    assert H200.floors(found.flops, found.passed) == pytest.approx(plan["floors_seconds"])


def test_a_failed_part_sets_the_exit_code(tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> Sequence[Row]:
        raise ValueError("no such kernel")

    parts = [Part("kernels", 0.1, raises), Part("rates", 0.1, lambda: [RATES]), Part("GRPO 7b", 99, raises)]
    monkeypatch.setattr(run, "make_parts", lambda *_: parts)
    output = tmp_path / "made" / "device.json"
    call = ("device", "--minutes=1", f"--output={output}")
    assert main(command_line, *call, commands=command_line.COMMANDS) == 1
    written = json.loads(output.read_text())
    assert [part["state"] for part in written["parts"]] == ["failed", "done", "left out"]
    assert written["problems"] == ["kernels: ValueError: no such kernel"] and written["rates"]["flops"] == RATES.flops
    assert output.with_suffix(".md").read_text() == markdown(written)
    monkeypatch.setattr(run, "make_parts", lambda *_: parts[1:])
    assert main(command_line, *call, commands=command_line.COMMANDS) == 0


@pytest.mark.slow
def test_the_command_measures_everything_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "device.json"
    shown = run_module("vitar_jax.bench", "device", "--minutes=60", f"--output={output}", environ=simulated(1))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    made = json.loads(output.read_text())
    assert [part["state"] for part in made["parts"]] == ["done"] * 7
    assert {check["name"].split(",")[0] for check in made["checks"]} == {"xla", "logits of tiny", "logits of qwen3_tiny"}
    names = ["prefill", "decode, 4 slots", "SFT update", "GRPO step", "GRPO update"]
    assert [found["name"] for found in made["speeds"]] == names
    assert all(found["seconds"] > 0 and found["share"] > 0 and found["target"] is None for found in made["speeds"])
    assert all("plan_share" in found for found in made["speeds"] if found["name"] != "GRPO step")
    step = made["speeds"][3]
    assert {"decode", "prefill", "vision", "tools", "host", "reward", "batch", "update"} == step["phases"].keys()
    assert sum(step["phases"].values()) == pytest.approx(step["seconds"])
    assert "| GRPO step | tiny |" in shown.stdout and output.with_suffix(".md").read_text() in shown.stdout
