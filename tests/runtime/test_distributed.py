"""From the environment to `jax.distributed`."""

import pytest

from vitar_jax.errors import ConfigError
from vitar_jax.runtime.distributed import distributed_arguments, mean_over_processes

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {"SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        SLURM | {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "2"},  # inside an allocation, but not started by srun
    ],
)
def test_a_process_alone_joins_nothing(environ: dict[str, str]) -> None:
    assert distributed_arguments(environ) is None


@pytest.mark.parametrize("environ", [{"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, SLURM, {"VITAR_DISTRIBUTED": "1"}])
def test_jax_finds_the_others(environ: dict[str, str]) -> None:
    assert distributed_arguments(environ) == {}


def test_explicit_addresses_come_first() -> None:
    expected = {"coordinator_address": "10.0.0.1:8476", "num_processes": 4, "process_id": 3}
    assert distributed_arguments(EXPLICIT | SLURM) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"JAX_PROCESS_ID": ""}, "without JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4"),
        ({"JAX_NUM_PROCESSES": "many"}, "JAX_NUM_PROCESSES=many"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "JAX_COORDINATOR_ADDRESS=10.0.0.1"),
    ],
)
def test_addresses_that_make_no_sense_are_named(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        distributed_arguments(EXPLICIT | changes)


def test_means_of_a_process_alone_are_its_own() -> None:
    assert mean_over_processes({"a": [1.5, 2.5], "b": [-2.0], "c": []}) == {"a": 2.0, "b": -2.0}
