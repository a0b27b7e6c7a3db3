"""The whole bench on tiny sizes: the rows are there, and both sides computed the same. No time is judged."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.kit.errors import Main, check_error
from tests.kit.images import noise
from tests.kit.processes import run_module
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench import attention, model, processing
from vitar_jax.bench.cases import CASES, ON_CPU, WORK, Case, deepstack_config, make_inputs, model_config
from vitar_jax.bench.pairs import Disagreement, Row
from vitar_jax.models.flops import BACKWARD
from vitar_jax.models.qwen2_5_vl.config import TextConfig
from vitar_jax.models.registry import abstract_model

pytestmark = pytest.mark.usefixtures("short_timings")

TINY = Case(
    "tiny",
    model_config(TextConfig(512, 64, 96, 2, 4, 2, (2, 3, 3)), depth=2, width=32, mlp=48, heads=2, dtype="float32"),
    rows=2,
    image_side=224,
    text_tokens=20,
    targets=dict.fromkeys(WORK, 1.0),
)

TINY_DEEPSTACK = dataclasses.replace(
    TINY, config=deepstack_config((512, 64, 96, 3, 4, 2, 32), depth=4, width=32, mlp=48, heads=2, taken=(0, 2))
)


def check(rows: list[Row], names: list[str], rounds: int) -> None:
    assert [row.pair.name for row in rows] == names
    for row in rows:
        assert len(row.ratios) == rounds and min(row.ratios) > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [TINY, TINY_DEEPSTACK], ids=lambda case: case.config.model_type)
def test_model(case: Case) -> None:
    said: list[str] = []
    rows, rate = model.measure([case], rounds=2, try_compile=False, matrix_size=64, say=said.append)
    check(rows, ["matrix product", *WORK], 2)
    assert rate > 0 and all(row.pair.flops > 0 for row in rows)
    assert {row.pair.peer_settings for row in rows[1:]} <= {"sdpa", "eager"}
    assert said[0].startswith("tiny: 0.") and all("agree" in line for line in said[1:])


@pytest.mark.slow
def test_attention() -> None:
    """The class of 1,024 px has fewer than twice the patches of the image; blocks take less than the whole."""
    said: list[str] = []
    memories = attention.memory({"tiny": TINY.config}, said.append, ["float32"])
    assert len(memories) == len(said) == 2 and {one.patches for one in memories} == {8192}
    assert all(one.met and one.blocks < one.whole / 4 for one in memories)
    rows = attention.speed(2, heads=2, width=8, patches=(64,))
    check(rows, ["full attention, forward", "full attention, gradient"], 2)
    lines = attention.table(memories, rows).splitlines()
    assert sum(line.endswith("met") for line in lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize("work", ["vision", "train step"])
def test_a_model_that_differs_is_not_timed(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of each tower is turned round."""

    def load(*args: Any, **kwargs: Any) -> Any:
        loaded = load_pretrained(*args, **kwargs)
        for kernel in (loaded.visual.patch_embed.kernel, loaded.model.layers.mlp.up_proj.kernel):
            kernel[...] = -kernel[...]
        return loaded

    load_pretrained = model.load_pretrained
    monkeypatch.setattr(model, "load_pretrained", load)
    case = dataclasses.replace(TINY, targets={work: None})
    with pytest.raises(Disagreement, match=f"tiny {work}"):
        model.measure([case], rounds=1, try_compile=False, matrix_size=64, say=lambda line: None)


def test_inputs_have_no_padding() -> None:
    """A peer without padding and we do the same work only where our shapes are filled."""
    for case in [TINY, *CASES.values()]:
        if case.name in ("3b", "7b"):
            continue  # the same geometry, much larger arrays
        batch = make_inputs(case).batch
        assert (batch.segment_ids == 1).all() and (batch.patch_positions >= 0).all()
        assert batch.loss_mask.sum() == case.rows * (case.text_tokens - 2)


def test_sizes_are_as_named() -> None:
    for name in ON_CPU:
        model = abstract_model(CASES[name].config)
        total, expected = sum(leaf.size for leaf in jax.tree.leaves(model)), 10e6 if "10m" in name else 150e6
        assert abs(total - expected) < 0.05 * expected, (name, total)
        assert model.model.embed_tokens.size < 0.25 * total  # the head is not everything


def test_a_train_step_is_three_forward_passes() -> None:
    case = CASES["10m"]
    forward = case.flops("prefill")
    assert case.flops("train step") == case.flops("gradient") > (1 + BACKWARD) * forward > forward > case.flops("vision")


def small_images(folder: Path, count: int) -> Path:
    for index in range(count):
        noise(84, 112, seed=index).save(folder / f"{index}.png")
    return folder


def test_processing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With threads in place of processes, which take seconds to start (see the next test)."""
    monkeypatch.setitem(processing._WAYS, "processes", processing.on_threads)
    said: list[str] = []
    rows = processing.measure(small_images(tmp_path, 2), count=5, workers=(1, 2), rounds=2, say=said.append)
    check(rows, ["decode and process"] * 2 + ["process"] * 2, 2)
    assert rows[0].pair.items == 2
    assert said[0].startswith(f"2 images from {tmp_path}") and "agree" in said[0]
    assert all("threads" in line and "processes" in line for line in said if "workers 2" in line)


@pytest.mark.slow
def test_processes_process_as_threads_do(tmp_path: Path) -> None:
    files = sorted(small_images(tmp_path, 3).iterdir())
    peer = partial(processing.process_peer, processing.Qwen2VLImageProcessorPil())
    ways = [make(files, peer, 2)() for make in processing._WAYS.values()]
    for threads, processes in zip(*ways, strict=True):
        assert np.array_equal(threads["pixel_values"], processes["pixel_values"])


def test_patches_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(processor: Any, source: Any) -> Any:
        processed = process_ours(processor, source)
        return dataclasses.replace(processed, patches=np.roll(processed.patches, 1, axis=0))

    process_ours = processing.process_ours
    monkeypatch.setattr(processing, "process_ours", process)
    with pytest.raises(Disagreement):
        processing.measure(None, count=1, workers=(1,), rounds=1, say=lambda line: None)


QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.slow
def test_help_shows_examples() -> None:
    shown = run_module("vitar_jax.bench", "--help")
    assert "python -m vitar_jax.bench model" in shown.stdout and not shown.stderr
    assert all(f"\n  --{flag} " in shown.stdout for flag in ("rounds", "config"))


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["model", "processing", "parser", "nothing"]),
        (["modle"], ["model", "processing", "modle"]),
        (["model", "more"], ["more"]),
        (["model", "--sizes=10n"], ["10n", "150m"]),
        (["rollout"], ["--config=FILE"]),
        (["rollout", QUICKSTART, "--sizes=3b"], ["3b", "quickstart, 10m, 7b"]),
        (["rollout", QUICKSTART, "--sizes=7b"], ["7b", "GPU"]),
        (["processing", "--workers=1,two"], ["1,two"]),
        (["processing", "--images=nowhere"], ["nowhere"]),
        (["processing", "--threads=1000"], ["1000"]),
        (["data"], ["--config=FILE"]),
        (["serve"], ["--checkpoint=DIR"]),
        (["serve", "--checkpoint=x", "--clients=1,0"], ["--clients", "1,0"]),
        (["parser", "--count=0"], ["count"]),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], parts: list[str], main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command_line, *arguments, commands=command_line.COMMANDS) == 2
    check_error(capsys.readouterr().err, *parts)


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    shown = run_module("vitar_jax.bench", "processing", "--count=1", "--rounds=1", "--workers=1", f"--output={output}")
    assert shown.returncode == 0, shown.stderr
    assert "1 images from noise" in shown.stdout + shown.stderr and "our speed" in shown.stdout
    assert "met" in shown.stdout or "MISSED" in shown.stdout
    assert [row["work"] for row in json.loads(output.read_text())["rows"]] == ["decode and process", "process"]
