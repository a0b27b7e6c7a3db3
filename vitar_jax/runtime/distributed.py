"""Multi-process runs: starts `jax.distributed` if the environment describes several processes, and exchanges host values."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from vitar_jax.errors import ConfigError

HEARTBEAT_SECONDS = 30  # without a heartbeat of one process for this long, the others fail
_FOREVER_MS = 10**9
_barriers = itertools.count()  # a barrier's name can be used only once
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(environ: Mapping[str, str] = os.environ, *, preemptible: bool = False) -> None:
    """Initializes `jax.distributed` in a multi-process run; does nothing in a single process. Call it before using devices.

    A run has several processes if one of these holds:

    - `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set, by hand or by
      `launch/local.sh`.
    - Slurm runs this process as one of several tasks.
    - `TPU_WORKER_HOSTNAMES` lists several workers of a TPU slice, as on GKE.
    - `VITAR_DISTRIBUTED=1` is set. JAX then detects the addresses itself, which works on a TPU slice outside GKE, under MPI
      and in Kubernetes.

    Args:
      preemptible: Whether a SIGTERM to one of several processes is forwarded to all instead of ending the process;
        `Preemption` reports it.

    Raises:
      ConfigError: If the explicit addresses are incomplete or invalid.
    """
    arguments = distributed_arguments(environ)
    if arguments is not None:
        jax.config.update("jax_enable_preemption_service", preemptible)
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def distributed_arguments(environ: Mapping[str, str]) -> dict | None:
    """Returns the arguments of `jax.distributed.initialize`: empty if JAX detects them itself, None for a single process."""
    given = [name for name in _EXPLICIT if environ.get(name)]
    if given:
        if missing := [name for name in _EXPLICIT if name not in given]:
            raise ConfigError(f"environment: got {', '.join(given)} without {', '.join(missing)}; set all three or none")
        address, count, index = (environ[name] for name in _EXPLICIT)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ConfigError(f"JAX_PROCESS_ID={index}, JAX_NUM_PROCESSES={count}: expected 0 <= process id < processes")
        if not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"JAX_COORDINATOR_ADDRESS={address}: expected host:port")
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    tasks = environ.get("SLURM_NTASKS", "1") if "SLURM_STEP_NODELIST" in environ else "1"
    workers = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if environ.get("VITAR_DISTRIBUTED") == "1" or int(tasks) > 1 or len(workers) > 1:
        return {}
    return None


def is_main() -> bool:
    """Returns whether this is the process that writes the shared files: logs, metrics, configs and reports."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Blocks until every process has reached this `place` of the program, without a timeout.

    Uses no collective, because collectives time out after 30 seconds on CPUs. The heartbeat detects a lost process.
    """
    if jax.process_count() > 1:
        client: Any = global_state.client
        client.wait_at_barrier(f"{next(_barriers)}: {place}", _FOREVER_MS)


def gather_json(value: Any) -> list[Any]:
    """Returns the JSON-serialisable values of all processes, ordered by process index."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = _gather(np.array(len(text)))
    texts = _gather(np.pad(text, (0, lengths.max() - len(text))))
    return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths, strict=True)]


def mean_over_processes(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the mean of each name's numbers over all processes. Omits names without numbers."""
    sums = np.array([(len(values), sum(values)) for values in numbers.values()])
    if jax.process_count() > 1:
        sums = _gather(sums).sum(axis=0)
    return {name: float(total / count) for name, (count, total) in zip(numbers, sums, strict=True) if count}


def _gather(array: np.ndarray) -> np.ndarray:
    """Stacks the arrays of all processes, after waiting for all of them without a timeout."""
    wait_for_all("gather")
    return np.asarray(multihost_utils.process_allgather(array))
