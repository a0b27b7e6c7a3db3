"""Several processes train as one: the real entry point, joined by the real `jax.distributed` on this machine."""

import functools
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.kit.processes import caching, free_port, run, simulated, start, start_together

METRICS = {
    "warmup": ("actor/loss", "actor/grad_norm"),
    "sft": ("actor/loss", "actor/grad_norm"),
    "grpo": ("actor/loss", "actor/grad_norm", "reward/mean", "rollout/tokens"),
}

# Changes of a recipe: 20 steps of SFT, and one update of GRPO whose rows are filled.
STEPS = {
    "micro_qwen3": (
        "--config.stages.sft.steps=20",
        "--config.stages.sft.checkpoint_every=20",
        "--config.stages.grpo.steps=1",
        "--config.stages.grpo.objective.packed=True",
        "--config.stages.grpo.micro_rows=1",
        "--config.stages.grpo.tokens=208",
        "--config.stages.grpo.policy_tokens=112",
    )
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes of all runs keep compiled programs."""
    return tmp_path_factory.mktemp("cache")


def launch(
    module: str, *arguments: str, workdir: Path, processes: int, cache: Path, recipe: str = "micro", devices: int = 8
) -> str:
    """Runs an entry point with one of the kit's recipes. The simulated devices are divided evenly among the processes."""
    command = ["bash", "launch/local.sh", str(processes), sys.executable, "-m", f"vitar_jax.{module}"]
    environ = simulated(devices // processes) | caching(cache) | {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
    done = run(*command, f"--config=tests/kit/{recipe}.py", f"--workdir={workdir}", *arguments, environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(workdir: Path, processes: int, cache: Path, recipe: str = "micro", devices: int = 8) -> str:
    """GRPO plays plain text, for which a random model has some reward."""
    changes = ("--config.stages.grpo.batch_size=4", "--config.stages.grpo.protocol=plain", *STEPS.get(recipe, ()))
    return launch(
        "train", *changes, workdir=workdir, processes=processes, cache=cache, recipe=recipe, devices=devices
    )


def metrics(workdir: Path, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def files(workdir: Path) -> list[str]:
    """What a run leaves behind, without the numbers in the names of logs and event files, which tell process and time."""
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())
    return sorted(re.sub(r"\d{8,}.*", "", name) for name in names if not {"checkpoints", "images"} & set(name.split("/")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Callable[[str], Path]:
    """Returns a function to the directory of a recipe's single-process run: on eight devices, or on one for Qwen3-VL."""

    @functools.cache
    def train_once(recipe: str) -> Path:
        workdir = tmp_path_factory.mktemp(recipe)
        train(workdir, 1, cache, recipe, devices=8 if recipe == "micro" else 1)
        return workdir

    return train_once


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, processes",
    [
        ("micro_qwen3", 2),
        pytest.param("micro", 2, marks=pytest.mark.sweep),
        pytest.param("micro", 4, marks=pytest.mark.sweep),
    ],
)
def test_processes_train_the_model_that_one_trains(
    recipe: str, processes: int, trained: Callable[[str], Path], cache: Path, tmp_path: Path
) -> None:
    alone = trained(recipe)
    said = train(tmp_path, processes, cache, recipe, devices=8 if recipe == "micro" else 4)
    assert any(cache.iterdir()) and "compilation cache" not in said  # JAX warns of entries that it cannot read or write
    stages = [stage for stage in METRICS if (alone / stage).exists()]
    for stage in stages:
        assert said.count(f" of {len(stages)}, {stage}") == 1  # said once
        assert said.count(f"{stage}, step 1: boxes grow") == said.count(f"{stage}, step") == (stage == "grpo")
        one, several = (metrics(workdir, stage) for workdir in (alone, tmp_path))
        assert [row["step"] for row in one] == [row["step"] for row in several]  # and written once
        assert all(row["actor/grad_norm"] > 0.1 for row in one)
        if stage == "grpo" and recipe != "micro":
            assert all(row["actor/filled_share"] < 1 for row in (*one, *several))
        for key in METRICS[stage]:
            np.testing.assert_allclose([r[key] for r in one], [r[key] for r in several], rtol=1e-4, atol=1e-6, err_msg=key)
        one, several = (load_file(workdir / stage / "model" / "model.safetensors") for workdir in (alone, tmp_path))
        for name, weights in one.items():
            assert np.linalg.norm(weights - several[name]) <= 1e-5 * max(np.linalg.norm(weights), 1), (stage, name)
    assert files(tmp_path) == files(alone)


@pytest.mark.slow
def test_processes_evaluate_as_one(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    """Six samples, of which the second process finds three; scores are those of all, said once."""
    scores = []
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        arguments = ["--stage=sft", f"--checkpoint={checkpoint}"]
        said = launch("evaluate", *arguments, workdir=workdir, processes=processes, cache=cache)
        assert said.count("exact/1 *") == said.count("failures: none") == 1
        scores.append(json.loads((workdir / "evaluation" / "sft" / "scores.json").read_text()))
        assert scores[-1]["per_sample"].pop("seconds") > 0
    assert scores[0] == scores[1] and scores[0]["samples"] == 6
    assert len((workdir / "evaluation" / "sft" / "trajectories-00001.jsonl").read_text().splitlines()) == 3


class Started:
    """A run of the micro recipe whose SFT does not end by itself, each process with its share of so many simulated devices."""

    def __init__(self, workdir: Path, processes: int, devices: int, cache: Path):
        command = [sys.executable, "-m", "vitar_jax.train", "--config=tests/kit/micro.py", f"--workdir={workdir}"]
        self.directory = workdir / "sft" / "checkpoints"
        self.said = workdir.parent / "said.txt"
        self.said.unlink(missing_ok=True)
        endless = ["--config.schedule=('sft',)", "--config.stages.sft.start=", "--config.stages.sft.steps=100000"]
        self.processes = start_together([*command, *endless], processes, devices, self.said, caching(cache))

    def steps(self) -> list[int]:
        """Of the checkpoints."""
        return sorted(int(path.name) for path in self.directory.glob("*") if path.name.isdecimal())

    def wait_for_checkpoints(self, count: int = 2) -> None:
        """Returns when so many checkpoints newer than those at the start are there."""
        first = max(self.steps(), default=0)
        until = time.monotonic() + 300
        while max(self.steps(), default=0) < first + 2 * count:
            assert all(process.poll() is None for process in self.processes), self.said.read_text()
            assert time.monotonic() < until, self.said.read_text()
            time.sleep(0.2)

    def codes(self, seconds: float) -> list[int]:
        """The exit codes of the processes, which end within so many seconds."""
        until = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, until - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [(0,), pytest.param((1, 0), marks=pytest.mark.sweep)], ids=["coordinator", "each"])
def test_processes_stop_together_and_go_on_as_others(killed: tuple[int, ...], cache: Path, tmp_path: Path) -> None:
    """A SIGTERM to one; then one that is killed, the coordinator last; then one process alone with other devices."""
    workdir = tmp_path / "run"
    run = Started(workdir, processes=2, devices=4, cache=cache)
    run.wait_for_checkpoints()
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.codes(60) == [0, 0], run.said.read_text()
    newest = run.steps()[-1]
    assert f"sft: stopped by SIGTERM after step {newest}" in run.said.read_text()
    damaged = Path()
    for index in killed:
        if index == 0:
            damaged = run.directory / str(run.steps()[-1])
            largest = max(damaged.rglob("*"), key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        run = Started(workdir, processes=2, devices=4, cache=cache)
        run.wait_for_checkpoints()
        run.processes[index].kill()
        assert (f"{damaged}: is damaged and skipped" in run.said.read_text()) == (index == 0)
        assert all(code != 0 for code in run.codes(60)), run.said.read_text()
    newest = run.steps()[-1]
    run = Started(workdir, processes=1, devices=2, cache=cache)
    run.wait_for_checkpoints()
    run.processes[0].send_signal(signal.SIGTERM)
    assert run.codes(60) == [0], run.said.read_text()
    logged = [row["step"] for row in metrics(workdir, "sft")]
    assert logged == list(range(1, run.steps()[-1] + 1)) and logged[-1] > newest
    assert "is damaged" not in run.said.read_text()  # what a kill left half written is no damage


@pytest.mark.slow
def test_sigterm_ends_a_process_that_has_nothing_to_save(tmp_path: Path) -> None:
    script = "import time; from vitar_jax.runtime import distributed; distributed.start(); print('ready'); time.sleep(600)"
    said = tmp_path / "said.txt"
    processes = start_together([sys.executable, "-u", "-c", script], 2, 2, said)
    try:
        while not all("ready" in path.read_text() for path in (said, tmp_path / "said.1.txt")):
            assert all(process.poll() is None for process in processes), said.read_text()
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        assert processes[1].wait(30) == -signal.SIGTERM
    finally:
        for process in processes:
            process.kill()


def test_a_process_that_fails_ends_the_others() -> None:
    script = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(600)"
    done = run("bash", "launch/local.sh", "2", sys.executable, "-c", script, timeout=60)
    assert done.returncode == 3


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 5])
def test_a_script_that_is_asked_to_stop_waits_for_its_processes(code: int, tmp_path: Path) -> None:
    script = f"""if True:
        import os, pathlib, signal, sys, time
        here = pathlib.Path({str(tmp_path)!r}, os.environ["JAX_PROCESS_ID"])
        def save(*_):
            time.sleep(0.5)
            here.write_text("saved")
            sys.exit({code})
        signal.signal(signal.SIGTERM, save)
        here.write_text("ready")
        time.sleep(600)
    """
    script_running = start("bash", "launch/local.sh", "2", sys.executable, "-c", script)
    files = [tmp_path / "0", tmp_path / "1"]
    while not all(file.exists() and file.read_text() == "ready" for file in files):
        time.sleep(0.05)
    script_running.send_signal(signal.SIGTERM)
    assert script_running.wait(60) == code and [file.read_text() for file in files] == ["saved", "saved"]
