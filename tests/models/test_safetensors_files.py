"""Our reader and writer of safetensors files, against the safetensors library."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from vitar_jax.errors import CheckpointError
from vitar_jax.models import safetensors_files
from vitar_jax.models.safetensors_files import TensorWriter, read_block, read_headers, row_blocks
from vitar_jax.runtime.remote import CheckpointFolder

FILE = "weights.safetensors"
KINDS = {"double": torch.float64, "full": torch.float32, "half": torch.float16, "brain": torch.bfloat16}
SHAPES = {"matrix": (37, 12), "vector": (50,), "filters": (6, 2, 3, 4)}


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{kind}.{shape}": torch.randn(SHAPES[shape], generator=generator).to(KINDS[kind]) for kind in KINDS for shape in SHAPES
    }


@pytest.fixture(scope="module", params=["local", "remote"])
def folder(
    request: pytest.FixtureRequest, theirs: dict[str, torch.Tensor], tmp_path_factory: Any
) -> Iterator[CheckpointFolder]:
    """A file that the library wrote, in a directory and in a file system without seeks of the operating system."""
    directory = tmp_path_factory.mktemp("theirs")
    save_file(theirs, directory / FILE, {"format": "pt"})
    if request.param == "local":
        yield CheckpointFolder.open(directory)
        return
    fs = fsspec.filesystem("memory")
    fs.put(str(directory / FILE), f"/safetensors_files/{FILE}")
    yield CheckpointFolder.open("memory://safetensors_files")
    fs.rm("/safetensors_files", recursive=True)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Its numbers in a type that holds them all."""
    return tensor.double().numpy()


def test_headers_are_read(folder: CheckpointFolder, theirs: dict[str, torch.Tensor]) -> None:
    ours = read_headers(folder, [FILE])
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tuple(t.shape) for n, t in theirs.items()}
    assert {name: tensor.dtype.name for name, tensor in ours.items()} == {
        name: str(tensor.dtype).removeprefix("torch.") for name, tensor in theirs.items()
    }


@given(data=st.data())
def test_any_part_of_any_tensor(folder: CheckpointFolder, theirs: dict[str, torch.Tensor], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(theirs)))
    stored = read_headers(folder, [FILE])[name]
    matrix = as_numpy(theirs[name]).reshape(theirs[name].shape[0], -1)
    rows, columns = (
        tuple(sorted(data.draw(st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True)))) for size in matrix.shape
    )
    block = data.draw(st.integers(1, 200))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_files, "BLOCK", block)
        cuts = list(row_blocks(stored, rows))
    parts = [read_block(folder, stored, cut, columns) for cut in cuts]
    assert [row for cut in cuts for row in range(*cut)] == list(range(*rows))
    assert all(part.nbytes <= block or len(part) == 1 for part in parts)
    joined = np.concatenate(parts).astype(np.float64)
    assert np.array_equal(joined, matrix[slice(*rows), slice(*columns)])


def test_rows_after_the_last_are_in_no_block(folder: CheckpointFolder) -> None:
    for stored in read_headers(folder, [FILE]).values():
        count = stored.shape[0]
        assert list(row_blocks(stored, (count - 1, count + 2))) == [(count - 1, count)]
        assert list(row_blocks(stored, (count + 1, count + 2))) == []


def test_the_library_reads_what_is_written(folder: CheckpointFolder, theirs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    stored = read_headers(folder, [FILE])
    specs = {name: jax.ShapeDtypeStruct(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    with TensorWriter(tmp_path / FILE, specs) as writer:
        for tensor in stored.values():
            writer.append(read_block(folder, tensor, (0, tensor.shape[0]), (0, math.prod(tensor.shape[1:]))))
    with safe_open(tmp_path / FILE, "pt") as again:
        assert again.metadata() == {"format": "pt"}
        assert set(again.keys()) == theirs.keys()
        for name, tensor in theirs.items():
            assert again.get_tensor(name).dtype == tensor.dtype and torch.equal(again.get_tensor(name), tensor), name


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"twice": torch.zeros(2)}, tmp_path / file)
    with pytest.raises(CheckpointError, match="b.safetensors: twice is in a.safetensors too"):
        read_headers(CheckpointFolder.open(tmp_path), ["a.safetensors", "b.safetensors"])


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "header, said",
    [
        ([], "list"),
        ({"w": 3}, "w"),
        ({"w": {"dtype": "F32", "shape": [2, 2]}}, "w"),
        ({"w": entry(offsets=[0])}, "w"),
        ({"w": entry(dtype="I64", shape=[2])}, "w has dtype 'I64'"),
        ({"w": entry(dtype="F4")}, "w has dtype 'F4'"),
        ({"w": entry(dtype=["F32"])}, "w has dtype"),
        ({"w": entry(shape=4)}, "w has shape"),
        ({"w": entry(shape=[-2, -2])}, "w has shape"),
        ({"w": entry(shape=[2.0, 2.0])}, "w has shape"),
        ({"w": entry(offsets=["0", "16"])}, "w has shape"),
        ({"w": entry(shape=[2, 3])}, "w has 16 bytes"),
        ({"w": entry(offsets=[16, 0])}, "w has -16 bytes"),
        ({"w": entry(offsets=[4, 20])}, "w begins at byte 4"),
        ({"w": entry(), "v": entry(shape=[2], offsets=[8, 16])}, "v begins at byte 8"),
        ({"w": entry(shape=[6], offsets=[0, 24])}, "w ends at byte 24 of the data, which has 16"),
        ({"w": entry(shape=[2], offsets=[0, 8])}, "end at byte 8"),
        ({}, "end at byte 0"),
    ],
)
def test_a_damaged_header_is_named(header: Any, said: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    check_refused(tmp_path, said)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_short_is_named(length: int, theirs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(theirs, tmp_path / FILE)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:length])
    check_refused(tmp_path, "truncated")


@pytest.mark.parametrize("start", [(2).to_bytes(8, "little") + b"\xff\xff", b"<!DOCTYPE html><html>", (99).to_bytes(8, "big")])
def test_a_file_of_another_kind_is_named(start: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(start + bytes(100))
    check_refused(tmp_path, "header")


def check_refused(directory: Path, said: str) -> None:
    """The error begins with the file; the library refuses the file too, but for numbers that are no weights."""
    with pytest.raises(CheckpointError, match=re.escape(said)) as raised:
        read_headers(CheckpointFolder.open(directory), [FILE])
    assert str(raised.value).startswith(f"{directory / FILE}: ")
    if "I64" not in said:
        with pytest.raises(Exception), safe_open(directory / FILE, "pt"):  # noqa: B017
            pass


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(8, 8)}, tmp_path / FILE)
    stored = read_headers(CheckpointFolder.open(tmp_path), [FILE])
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=f"{FILE}: cannot read w"):
        read_block(CheckpointFolder.open(tmp_path), stored["w"], (0, 8), (0, 8))
