"""Two processes train as one: the real entry point, joined by the real `jax.distributed` on this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
STAGES = ("warmup", "sft", "grpo")


def train(workdir: Path, processes: int) -> str:
    """Trains the micro recipe on eight simulated devices, as many in each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    command = ["bash", "launch/local.sh", str(processes), sys.executable, "-m", "vitar_jax.train"]
    done = subprocess.run(
        [*command, "--config=tests/micro.py", f"--workdir={workdir}"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics(workdir: Path, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_the_model_that_one_trains(tmp_path: Path) -> None:
    said = {processes: train(tmp_path / str(processes), processes) for processes in (1, 2)}
    for stage in STAGES:
        assert said[2].count(f" of 3, {stage}") == 1  # said once
        one, two = (metrics(tmp_path / str(processes), stage) for processes in (1, 2))
        assert [row["step"] for row in one] == [row["step"] for row in two]  # and written once
        for key in ("loss", "grad_norm", "reward/mean", "rollout/tokens"):
            if key in one[0]:
                np.testing.assert_allclose([r[key] for r in one], [r[key] for r in two], rtol=1e-4, atol=1e-6, err_msg=key)
    one, two = (load_file(tmp_path / str(p) / "sft" / "model" / "model.safetensors") for p in (1, 2))
    for name, weights in one.items():
        assert np.linalg.norm(weights - two[name]) <= 1e-5 * max(np.linalg.norm(weights), 1), name


def test_a_process_that_fails_ends_the_others() -> None:
    script = "import os, sys, time; sys.exit(3) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(600)"
    done = subprocess.run(
        ["bash", "launch/local.sh", "2", sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 3
