"""Several processes as one machine: starts `jax.distributed` where the environment says that there are several."""

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

HEARTBEAT_SECONDS = 30  # after so long without a sign of one process, the others end with an error
_FOREVER_MS = 10**9
_waits = itertools.count()  # a barrier's name may be used but once
_EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start(environ: Mapping[str, str] = os.environ, *, preemptible: bool = False) -> None:
    """Joins this process to the others of its run; does nothing for a process alone. Call before anything asks for devices.

    There are others where one of these holds:

    - `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are set: by hand, or by
      `launch/local.sh`;
    - Slurm runs this as one of several tasks;
    - a TPU slice names several workers in `TPU_WORKER_HOSTNAMES`, as on GKE;
    - `VITAR_DISTRIBUTED=1`: JAX is to find the addresses by itself, as it can on a TPU slice outside GKE, under MPI and in
      Kubernetes.

    Args:
      preemptible: among several, a SIGTERM to one does not end it but is told to all, who ask `Preemption`.

    Raises:
      ConfigError: explicit addresses are incomplete or make no sense.
    """
    arguments = distributed_arguments(environ)
    if arguments is not None:
        jax.config.update("jax_enable_preemption_service", preemptible)
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def distributed_arguments(environ: Mapping[str, str]) -> dict | None:
    """What `jax.distributed.initialize` is called with, empty where JAX finds all by itself; None for a process alone."""
    given = [name for name in _EXPLICIT if environ.get(name)]
    if given:
        if missing := [name for name in _EXPLICIT if name not in given]:
            raise ConfigError(f"{', '.join(given)} is set, but {', '.join(missing)} is not; set all three or none")
        address, count, index = (environ[name] for name in _EXPLICIT)
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ConfigError(f"JAX_PROCESS_ID={index} is not one of the JAX_NUM_PROCESSES={count} processes 0, 1, ...")
        if not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"JAX_COORDINATOR_ADDRESS={address} is not host:port")
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    tasks = environ.get("SLURM_NTASKS", "1") if "SLURM_STEP_NODELIST" in environ else "1"
    workers = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if environ.get("VITAR_DISTRIBUTED") == "1" or int(tasks) > 1 or len(workers) > 1:
        return {}
    return None


def is_main() -> bool:
    """Whether this process writes what is written once: logs, metrics, configs, reports."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Returns when every process has come to this `place` of the program, however long the others take.

    A collective would not do: on CPUs they give up after 30 seconds. A process that is lost is told by its heartbeat.
    """
    if jax.process_count() > 1:
        client: Any = global_state.client
        client.wait_at_barrier(f"{next(_waits)}: {place}", _FOREVER_MS)


def gather_json(value: Any) -> list[Any]:
    """Every process's value (JSON), in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = _gather(np.array(len(text)))
    texts = _gather(np.pad(text, (0, lengths.max() - len(text))))
    return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths, strict=True)]


def mean_over_processes(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means of all numbers that all processes have under the same names; a name without numbers is left out."""
    sums = np.array([(len(values), sum(values)) for values in numbers.values()])
    if jax.process_count() > 1:
        sums = _gather(sums).sum(axis=0)
    return {name: float(total / count) for name, (count, total) in zip(numbers, sums, strict=True) if count}


def _gather(array: np.ndarray) -> np.ndarray:
    """Every process's array, stacked, however long the others take to come here."""
    wait_for_all("numbers are there")
    return np.asarray(multihost_utils.process_allgather(array))
