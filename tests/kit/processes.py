"""Starts the processes of all tests, and measures the memory and the bytes read of a process on Linux."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MICRO = str(ROOT / "tests" / "kit" / "micro.py")

# Tests spend more time on compiling tiny programs than on running them. LLVM optimizes nothing; XLA emits code without MLIR, in
# a third of the time; and a program is one module and not one for each of many threads, in two thirds of what is left.
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)

Environ = Mapping[str, str | None]  # None removes the variable


def _environment(environ: Environ | None) -> dict[str, str]:
    return {name: value for name, value in (os.environ | (environ or {})).items() if value is not None}


def start(*command: str, environ: Environ | None = None, **options: Any) -> subprocess.Popen[str]:
    """Starts a command in the root of the repository. `options` are passed to `subprocess.Popen`."""
    return subprocess.Popen(command, cwd=ROOT, env=_environment(environ), text=True, **options)


def until(happened: Callable[[], bool], running: subprocess.Popen) -> None:
    """Waits until something has happened, for at most two minutes. Asserts that the process still runs."""
    end = time.monotonic() + 120
    while not happened():
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.002)


def run(*command: str, environ: Environ | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs a command in the root of the repository and captures its output."""
    return subprocess.run(command, cwd=ROOT, env=_environment(environ), text=True, capture_output=True, timeout=timeout)


def run_module(*arguments: str, environ: Environ | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs a module as `python -m` does, with its arguments."""
    return run(sys.executable, "-m", *arguments, environ=environ, timeout=timeout)


def run_code(code: str, *arguments: str, environ: Environ | None = None, timeout: float = 600) -> str:
    """Runs a program, asserts that it succeeds, and returns its standard output."""
    done = run(sys.executable, "-c", code, *arguments, environ=environ, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def simulated(devices: int) -> dict[str, str]:
    """Returns the environment of a process with `devices` simulated devices, whose programs compile as in `conftest.py`."""
    flags = (f"--xla_force_host_platform_device_count={devices}", *QUICK_COMPILATION)
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


def caching(directory: Path) -> dict[str, str]:
    """Returns the environment of a process that caches every compiled program in a directory."""
    return {"JAX_COMPILATION_CACHE_DIR": str(directory), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start_together(
    command: Sequence[str], processes: int, devices: int, log: Path, environ: Environ | None = None
) -> list[subprocess.Popen[str]]:
    """Starts a command as several processes of one run, which share the simulated devices equally.

    The first process writes its output to `log`, each other process to a file next to it.
    """
    port, started = free_port(), []
    for index in range(processes):
        joined = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        environment = simulated(devices // processes) | (joined if processes > 1 else {}) | dict(environ or {})
        with (log.with_suffix(f".{index}{log.suffix}") if index else log).open("a") as said:
            started.append(start(*command, environ=environment, stdout=said, stderr=said))
    return started


def bytes_read() -> int:
    """Returns the number of bytes that this process has read from files, as counted by Linux."""
    return int(Path("/proc/self/io").read_text().split()[1])


def status(key: str) -> int:
    """Returns a value of this process in bytes, by its name in Linux's status file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


class Peak:
    """The peak memory of this process in a `with` block, minus its memory at the start of the block."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = status("VmHWM") - self._before
