"""Weights of any size: what loading and saving take of the host's memory, and what each process reads."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.kit.large_weights import (
    ALLOWED,
    LARGE,
    MESHES,
    MIB,
    ODD,
    SMALL,
    numbered,
)
from tests.kit.processes import free_port, simulated, start
from vitar_jax.models.pretrained import save_pretrained

pytestmark = pytest.mark.slow


def in_process(function: str, *arguments: object, devices: int) -> subprocess.Popen[str]:
    """Starts a function of `large_weights` in a process with this number of simulated devices."""
    call = f"from tests.kit import large_weights; large_weights.{function}({', '.join(map(repr, map(str, arguments)))})"
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return start(sys.executable, "-c", call, environ=simulated(devices), **pipes)


def answer(process: subprocess.Popen[str]) -> Any:
    """What the process printed last, as JSON."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def in_two_processes(function: str, *arguments: object) -> list[Any]:
    """What both printed last; each has two devices, its number and a port."""
    port = free_port()
    both = [in_process(function, number, port, *arguments, devices=2) for number in range(2)]
    return [answer(process) for process in both]


# Memory


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A large checkpoint, and what saving it took."""
    directory = tmp_path_factory.mktemp("large")
    yield directory, answer(in_process("measure_save", directory, devices=4))
    for file in directory.iterdir():
        file.unlink()


def test_saving_takes_little_memory(large: tuple[Path, int]) -> None:
    directory, peak = large
    assert peak < ALLOWED + LARGE.text.vocab_size * LARGE.text.hidden_size * 2
    sizes = [file.stat().st_size for file in directory.glob("model-*.safetensors")]
    assert len(sizes) > 3 and max(sizes) < 301 * MIB and sum(sizes) > 1024 * MIB


@pytest.mark.parametrize("fsdp, tensor", [pytest.param(1, 1, marks=pytest.mark.sweep), (2, 2)])
def test_loading_takes_little_memory(fsdp: int, tensor: int, large: tuple[Path, int]) -> None:
    extra, bound, right = answer(in_process("measure_load", large[0], fsdp, tensor, "streamed", devices=fsdp * tensor))
    assert right
    assert bound == ALLOWED + 256 * MIB // (fsdp * tensor)
    assert extra < bound


def test_loading_from_afar_takes_little_memory(large: tuple[Path, int]) -> None:
    peak, bound = answer(in_process("measure_load_from_afar", large[0], devices=4))
    assert peak < bound


def test_the_measure_sees_hoarding(large: tuple[Path, int]) -> None:
    extra, bound, right = answer(in_process("measure_load", large[0], 2, 2, "hoarded", devices=4))
    assert right
    assert extra > 2 * bound


# Processes


def test_two_processes_read_each_byte_once(tmp_path: Path) -> None:
    save_pretrained(numbered(SMALL, None), tmp_path / "whole")
    read, right = zip(*in_two_processes("load_and_save", tmp_path / "whole", tmp_path / "parts"), strict=True)
    assert all(right)
    stored = (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert stored < sum(read) < 1.05 * stored  # norms and the like are in both
    assert max(read) < 0.55 * stored

    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2
    theirs = load_file(tmp_path / "whole" / "model.safetensors")
    ours = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].tobytes() == tensor.tobytes(), name


def test_two_processes_read_a_remote_byte_once(tmp_path: Path) -> None:
    save_pretrained(numbered(ODD, None), tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        tensors = len(list(file.keys()))
    for mesh, *both in zip(MESHES, *in_two_processes("load_from_afar", tmp_path), strict=True):
        (first, first_right), (second, second_right) = both
        assert first_right and second_right, mesh
        assert size < sum(first) + sum(second) < 1.05 * size, mesh  # norms and the like are in both
        assert max(sum(first), sum(second)) < 0.55 * size, mesh
        # One per tensor and device, two of the header, one of the config.
        assert max(len(first), len(second)) <= 2 * tensors + 3, mesh
