"""What a start costs: programs are compiled once, beside other work, and a second start compiles nothing."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.kit.processes import run, run_code, simulated
from vitar_jax.experiment.programs import compile_ahead

# The training entry point, with a count of what JAX says of compilation.
COUNTED = """
import collections, json, jax
from vitar_jax import train
from vitar_jax.runtime import cli
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name]))
jax.monitoring.register_event_duration_secs_listener(lambda name, _, fun_name="", **__: counts.update([f"{name} {fun_name}"]))
train.define_flags()
try:
    cli.run(train.main)
finally:
    print("COUNTS", json.dumps(counts))
"""


def start(home: Path, code: str, *arguments: str, **environ: str) -> str:
    """What a process says that has this home, two devices, and no word about a compilation cache but in `environ`."""
    inherited = {name: None for name in os.environ if name.startswith(("JAX_COMP", "JAX_PERS"))}
    return run_code(code, *arguments, environ=inherited | simulated(2) | {"HOME": str(home)} | environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages, flags",
    [
        (1, ["--config.schedule=('grpo',)", "--config.stages.grpo.start=", "--config.stages.grpo.steps=2"]),
        pytest.param(3, [], marks=pytest.mark.sweep),
    ],
    ids=["grpo", "all stages"],
)
def test_a_second_start_compiles_nothing(stages: int, flags: list[str], tmp_path: Path) -> None:
    def train(workdir: str) -> dict[str, int]:
        arguments = ["--config=tests/kit/micro.py", f"--workdir={tmp_path / workdir}", *flags]
        said = start(tmp_path, COUNTED, *arguments, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
        return json.loads(said.rpartition("COUNTS")[2])

    cache = "/jax/compilation_cache"
    first, second = train("first"), train("second")
    assert first[f"{cache}/cache_misses"] > 20
    assert f"{cache}/cache_misses" not in second
    assert second[f"{cache}/cache_hits"] == second[f"{cache}/compile_requests_use_cache"] > 20
    for counts in (first, second):  # what is compiled ahead is what the loop calls: one step a stage
        assert counts["/jax/core/compile/backend_compile_duration jit(train_step)"] == stages


@pytest.mark.slow
@pytest.mark.parametrize(
    "environ, place",
    [
        ({}, "HOME/.cache/vitar_jax/compiled"),
        ({"JAX_COMPILATION_CACHE_DIR": "HOME/mine"}, "HOME/mine"),
        ({"JAX_COMPILATION_CACHE_DIR": ""}, ""),
    ],
    ids=["default", "elsewhere", "off"],
)
def test_compiled_programs_are_kept_unless_told_otherwise(environ: dict[str, str], place: str, tmp_path: Path) -> None:
    code = "import jax; from vitar_jax.runtime import cli; cli.enable_compilation_cache(); jax.jit(lambda x: x + 1)(1)"
    environ = {name: value.replace("HOME", str(tmp_path)) for name, value in environ.items()}
    start(tmp_path, code, **environ)
    assert not list(tmp_path.rglob("*-cache"))  # nothing that compiles in less than half a second
    start(tmp_path, code, **environ, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    kept = {str(path.parent) for path in tmp_path.rglob("*-cache")}
    assert kept == ({place.replace("HOME", str(tmp_path))} if place else set())


def traced(on: list[str]) -> Callable[[jax.Array], jax.Array]:
    """A jitted function that notes the thread of each of its traces."""

    @jax.jit
    def double(x: jax.Array) -> jax.Array:
        on.append(threading.current_thread().name)
        return 2 * x

    return double


def test_a_program_is_compiled_on_another_thread_and_once() -> None:
    on: list[str] = []
    double = compile_ahead(traced(on), jax.ShapeDtypeStruct((3,), jnp.float32))
    for _ in range(2):
        assert double(jnp.ones(3)).tolist() == [2, 2, 2]
    assert len(on) == 1 and on[0] != threading.main_thread().name


def test_what_fails_ahead_is_raised_at_the_call() -> None:
    broken = compile_ahead(jax.jit(lambda x: x.nothing), jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(AttributeError, match="nothing"):
        broken(jnp.ones(3))


@pytest.mark.slow
def test_nothing_is_said_of_devices_that_are_absent(tmp_path: Path) -> None:
    """An installed libtpu, and JAX's log through the handler of absl, stay silent."""
    code = "import jax; from vitar_jax.runtime import cli; cli.run(lambda: print(jax.default_backend()))"
    done = run(sys.executable, "-c", code, environ={"JAX_PLATFORMS": None, "HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip() in ("cpu", "gpu", "tpu")
