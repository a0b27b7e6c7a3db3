"""A run that is stopped and started again ends with the weights of one that was not, to the bit."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tests.kit import micro
from tests.kit.endings import start
from tests.kit.processes import run_module
from vitar_jax.episodes.trajectory_files import read_records, read_trajectories
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.registry import load_config
from vitar_jax.rollout.checkpoint_settings import load_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compilations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder in which the runs of this module share compiled programs. JAX ignores another one once it uses the tests'."""
    flags: Any = jax.config
    before = flags.jax_compilation_cache_dir, flags.jax_persistent_cache_min_compile_time_secs
    yield before[0] or str(tmp_path_factory.mktemp("compilations"))
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, compilations: str) -> Path:
    """The directory of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    start(workdir, compilations).train()
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, compilations: str, whole: Path) -> Path:
    """That of a run that was killed while it saved, asked to stop in SFT, killed while it played, and went on each time."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"

    def end(ending: str) -> tuple[int, str]:
        ended = run_module("tests.kit.endings", str(workdir), compilations, ending)
        return ended.returncode, ended.stdout + ended.stderr

    code, said = end("saving")
    assert code == -signal.SIGKILL, said
    assert saved(workdir, "sft") == ["2.orbax-checkpoint-tmp"]
    code, said = end("learning")
    assert code == 0 and "sft: stopped by SIGTERM after step 3, which is saved" in said, said
    assert "2.orbax-checkpoint-tmp: incomplete, as the run ended while it was written; skipped" in said
    assert saved(workdir, "sft") == ["2", "3"] and steps(workdir, "sft") == [2]
    code, said = end("playing")
    assert code == -signal.SIGKILL, said
    assert (workdir / "sft" / "model").exists() and saved(workdir, "grpo") == ["2"]
    start(workdir, compilations).train()
    return workdir


def saved(workdir: Path, stage: str) -> list[str]:
    return sorted(path.name for path in (workdir / stage / "checkpoints").iterdir())


def metrics(workdir: Path, stage: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("timing_s", "perf"))} for row in rows]


def steps(workdir: Path, stage: str) -> list[float]:
    return [row["step"] for row in metrics(workdir, stage)]


def weights(workdir: Path, stage: str, which: str = "model") -> dict[str, np.ndarray]:
    return load_file(workdir / stage / which / "model.safetensors")


@pytest.mark.parametrize("stage, which", [("warmup", "model"), ("sft", "model"), ("grpo", "model"), ("grpo", "best")])
def test_weights_are_the_same_to_the_bit(whole: Path, stopped: Path, stage: str, which: str) -> None:
    expected, ours = weights(whole, stage, which), weights(stopped, stage, which)
    assert expected.keys() == ours.keys()
    for name, values in expected.items():
        assert values.tobytes() == ours[name].tobytes(), name


@pytest.mark.parametrize("stage, logged", [("warmup", [1]), ("sft", [2, 4]), ("grpo", [1, 2, 3, 4])])
def test_every_step_is_logged_once_and_the_same(whole: Path, stopped: Path, stage: str, logged: list[int]) -> None:
    assert steps(stopped, stage) == logged
    assert metrics(whole, stage) == metrics(stopped, stage)


def test_the_same_episodes_are_kept(whole: Path, stopped: Path) -> None:
    kept = [[trajectory.to_json() for trajectory in read_trajectories(workdir / "grpo")] for workdir in (whole, stopped)]
    assert kept[0] == kept[1] and len(kept[0]) == 16


def test_what_is_logged(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "grpo" / "metrics.jsonl").read_text().splitlines()]
    timed = {f"timing_s/{part}" for part in ("rollout", "reward", "batch", "update", "step")}
    assert timed | {"actor/loss", "actor/grad_norm", "actor/entropy", "actor/clip_fraction", "reward/failed"} < rows[0].keys()
    assert all(min(row[name] for name in timed) >= 0 and row["perf/tokens_per_second"] > 0 for row in rows)
    assert "perf/mfu" not in rows[0]  # nothing is known of a CPU
    assert sys.platform != "linux" or all(0.1 < row["perf/host_memory_gib"] < 100 for row in rows)
    assert rows[0]["actor/lr"] == pytest.approx(5e-4 / 2)  # the first step of a warm-up of one
    assert all(1 / 3 <= row["actor/filled_share"] < 1 for row in rows)  # episodes of random weights are short
    # The sampler and the trainer are one model.
    assert all(row["actor/logprob_gap_max"] < 1e-3 and row["actor/effective_sample_size"] > 0.999 for row in rows)


def test_episodes_that_were_kept_have_a_report(whole: Path) -> None:
    assert "grpo: episodes of its training" in (whole / "grpo" / "report" / "index.html").read_text()
    rows = json.loads((whole / "grpo" / "report" / "episodes.json").read_text())
    assert [row["advantage"] for row in rows] == [record["advantage"] for record in read_records(whole / "grpo")] != []
    assert not list((whole / "grpo" / "report" / "images").iterdir())
    assert "Look twice." in (whole / "grpo" / "report" / "data" / "000.js").read_text()  # as only tokens say


def test_groups_were_replaced_and_the_weights_left_the_reference(whole: Path) -> None:
    assert all(row["rollout/replaced_groups"] > 0 for row in metrics(whole, "grpo"))
    assert metrics(whole, "grpo")[-1]["actor/kl"] > 1e-6
    missing = [row["expert/missing"] for row in metrics(whole, "grpo")]
    assert missing[0] == 1 and missing[-1] < 1  # earlier episodes are replayed


def test_stages_learn(whole: Path) -> None:
    first, second = weights(whole, "warmup"), weights(whole, "sft")
    assert all(np.any(first[name] != second[name]) for name in first)


def test_what_is_done_is_not_done_again(whole: Path, compilations: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitar_jax.experiment.trainer.run_loop", None)
    run = start(whole, compilations)
    assert all(run.model_dir(name).exists() for name in run.recipe.schedule)
    run.train()


def test_transformers_loads_the_model(whole: Path) -> None:
    directory = whole / "sft" / "model"
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype="float32")
    saved = weights(whole, "sft")
    loaded = {name: values.numpy() for name, values in theirs.state_dict().items()}
    embedding = "model.language_model.embed_tokens.weight"
    assert np.array_equal(loaded[embedding], saved["model.embed_tokens.weight"])
    assert len({id(parameter) for parameter in theirs.parameters()}) == len(saved)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == theirs.config.image_token_id


def test_our_own_entry_points_load_the_model(whole: Path) -> None:
    directory = whole / "grpo" / "model"
    config = load_config(directory)
    settings = load_settings(directory, config)
    recipe = Recipe.from_config(micro.get_config())
    assert settings.protocol().name == recipe.stages["grpo"].protocol
    assert settings.protocol() == recipe.all_protocols["vitar"]
    assert settings.limits == recipe.limits
    assert settings.options_only  # and not so after a stage whose questions have none
    assert not load_settings(whole / "warmup" / "model", config).options_only
    loaded = jax.tree.leaves(load_pretrained(directory))
    assert sum(leaf.size for leaf in loaded) == sum(values.size for values in weights(whole, "grpo").values())
    assert config.text == recipe.model.towers()[0]
