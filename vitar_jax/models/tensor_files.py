"""Reads slices of tensors from safetensors files, and writes such files one tensor at a time.

The `safetensors` library maps whole files into memory, whose pages count as ours, opens no remote files, and writes a file
from tensors that are all in memory. The format is simple enough to do without:

    8 bytes       n, the length of the header, little-endian
    n bytes       JSON: {name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}}
    the rest      the tensors, row-major, one after another without gaps; offsets count from here
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import ml_dtypes
import numpy as np

from vitar_jax.errors import CheckpointError
from vitar_jax.models.folder import Folder

BLOCK = 32 * 2**20  # bytes read at a time
_MAX_HEADER = 100_000_000  # bytes, as the library's
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

Bounds = tuple[int, int]  # from, to


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `start` is its first byte in the file."""

    file: str
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def read_headers(folder: Folder, files: list[str]) -> dict[str, StoredTensor]:
    """All tensors of some files by name; no data is read.

    Raises:
      CheckpointError: a file is missing, cut short or damaged, or holds a tensor of a type that is no float, or one that
        another file holds too. It names file and tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(folder, file):
            if tensor.name in tensors:
                raise CheckpointError(f"{folder.label(file)}: {tensor.name} is in {tensors[tensor.name].file} too")
            tensors[tensor.name] = tensor
    return tensors


def _read_header(folder: Folder, file: str) -> list[StoredTensor]:
    label = folder.label(file)
    try:
        size = folder.size(file)
        with folder.open_file(file) as source:
            length = int.from_bytes(source.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(f"{label}: not a safetensors file, or cut short: {size} bytes, header of {length}")
            header = json.loads(source.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{label}: cannot read the header ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{label}: the header is a {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    found = [_check_entry(name, entry, label) for name, entry in header.items()]
    data = size - 8 - length
    end = 0
    for name, (_, _, (begin, stop)) in sorted(zip(header, found, strict=True), key=lambda item: item[1][2]):
        if begin != end:
            raise CheckpointError(f"{label}: {name} begins at byte {begin} of the data, the tensor before it ends at {end}")
        if stop > data:
            raise CheckpointError(f"{label}: cut short: {name} ends at byte {stop} of the data, which has {data}")
        end = stop
    if end != data:
        raise CheckpointError(f"{label}: the tensors end at byte {end} of the data, which has {data}")
    return [
        StoredTensor(file, name, dtype, shape, 8 + length + begin)
        for name, (dtype, shape, (begin, _)) in zip(header, found, strict=True)
    ]


def _check_entry(name: str, entry: Any, label: str) -> tuple[np.dtype, tuple[int, ...], Bounds]:
    """Type, shape and data offsets of one tensor of a header."""
    try:
        code, shape, (begin, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{label}: {name} has no readable entry: {entry!r:.200}") from error
    if not isinstance(code, str) or code not in _DTYPES:
        raise CheckpointError(f"{label}: {name} has dtype {code!r}; weights are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)):
        raise CheckpointError(f"{label}: {name} has shape {shape!r} at {[begin, stop]!r}")
    expected = math.prod(shape) * _DTYPES[code].itemsize
    if stop - begin != expected:
        raise CheckpointError(f"{label}: {name} has {stop - begin} bytes, {code} {shape} takes {expected}")
    return _DTYPES[code], tuple(shape), (begin, stop)


class TensorReader:
    """Reads parts of tensors; files are opened once, and closed at the end of a `with` block."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def blocks(self, tensor: StoredTensor, rows: Bounds, columns: Bounds) -> Iterator[tuple[int, np.ndarray]]:
        """Reads a part of a tensor in blocks of rows, none above `BLOCK` bytes unless a single row is.

        The tensor is seen as a matrix of shape[0] rows. Of a local file exactly the bytes asked for are read. Where
        columns are cut, a remote one is read by whole rows, since there a request costs more than the bytes.

        Yields:
          (first row of the block, counted from that of the part; the block in the type of the file, [n, columns]).

        Raises:
          CheckpointError: the file has ended early or cannot be read.
        """
        itemsize = tensor.dtype.itemsize
        width = math.prod(tensor.shape[1:])
        left, right = columns if self._folder.is_local else (0, width)
        count = max(1, BLOCK // max(1, (right - left) * itemsize))
        for first in range(*rows, count):
            block = np.empty((min(count, rows[1] - first), right - left), tensor.dtype)
            pieces = block.reshape(1, -1) if right - left == width else block
            for number, piece in enumerate(pieces.view(np.uint8)):
                self._read(tensor, ((first + number) * width + left) * itemsize, piece)
            yield first - rows[0], block[:, columns[0] - left : columns[1] - left]

    def _read(self, tensor: StoredTensor, offset: int, target: np.ndarray) -> None:
        """Fills `target`, uint8 [n], from the bytes at `offset` of a tensor."""
        file = self._files.get(tensor.file)
        done = 0
        try:
            if file is None:
                file = self._files[tensor.file] = self._folder.open_file(tensor.file)
            file.seek(tensor.start + offset)
            while done < len(target):
                read = file.readinto(target[done:])  # type: ignore[attr-defined]
                if not read:
                    raise OSError("the file ends too early")
                done += read
        except OSError as error:
            raise CheckpointError(f"{self._folder.label(tensor.file)}: cannot read {tensor.name} ({error})") from error


class TensorWriter:
    """Writes one file of tensors whose types and shapes are known beforehand; they then come one by one, in that order."""

    def __init__(self, path: Path, tensors: Mapping[str, jax.ShapeDtypeStruct]):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants to be told so
        end = 0
        for name, tensor in tensors.items():
            begin, end = end, end + nbytes(tensor)
            entry = {"dtype": _CODES[np.dtype(tensor.dtype)], "shape": tensor.shape, "data_offsets": [begin, end]}
            header[name] = entry
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, tensor: np.ndarray) -> None:
        """Writes the next tensor."""
        self._file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def nbytes(tensor: jax.ShapeDtypeStruct) -> int:
    """Bytes that a tensor takes in a file."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
