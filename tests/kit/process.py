"""What processes that tests start are given, and what Linux tells about one: memory held and bytes read."""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process with so many simulated devices."""
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start_together(
    command: Sequence[str], processes: int, devices: int, log: Path, **environ: str
) -> list[subprocess.Popen[bytes]]:
    """Starts a command as so many processes of one run, each with its share of so many simulated devices.

    What the first says goes to `log`, what each other says to a file beside it.
    """
    port, started = free_port(), []
    for index in range(processes):
        joined = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        environment = os.environ | simulated(devices // processes) | (joined if processes > 1 else {}) | environ
        with (log.with_suffix(f".{index}{log.suffix}") if index else log).open("a") as said:
            started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=said, stderr=said))
    return started


def bytes_read() -> int:
    """What this process has read from files so far, as Linux counts it."""
    return int(Path("/proc/self/io").read_text().split()[1])


def status(key: str) -> int:
    """A value of this process in bytes, by its name in Linux' status file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


class Peak:
    """The most memory that this process held in a `with` block, above that at its start."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = status("VmHWM") - self._before
