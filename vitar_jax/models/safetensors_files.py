"""Reads slices of tensors from safetensors files, and writes safetensors files one tensor at a time.

The `safetensors` library maps whole files into the memory of the process, cannot open remote files, and writes only tensors
that are all in memory. The format is simple enough to read and write here:

    8 bytes       n, the length of the header, little-endian
    n bytes       JSON: {name: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {...}}
    the rest      the tensors, row-major, one after another without gaps; offsets count from here
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vitar_jax.errors import CheckpointError
from vitar_jax.runtime.remote import CheckpointFolder

BLOCK = 8 * 2**20  # bytes read at a time
_MAX_HEADER = 100_000_000  # bytes, the limit of the library
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
    """Location of one tensor. `start` is the offset of its first byte in the file."""

    file: str
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def read_headers(folder: CheckpointFolder, files: list[str]) -> dict[str, StoredTensor]:
    """Returns all tensors of some files by name, without reading their data.

    Raises:
      CheckpointError: If a file is missing, truncated or damaged, a tensor is not of a float type, or two files contain the
        same tensor. The error names file and tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(folder, file):
            if tensor.name in tensors:
                raise CheckpointError(f"{folder.label(file)}: {tensor.name} is in {tensors[tensor.name].file} too")
            tensors[tensor.name] = tensor
    return tensors


def _read_header(folder: CheckpointFolder, file: str) -> list[StoredTensor]:
    label = folder.label(file)
    try:
        size = folder.size(file)
        length = int.from_bytes(folder.read(file, 0, 8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{label}: not a safetensors file, or truncated: {size} bytes, header of {length}")
        header = json.loads(folder.read(file, 8, 8 + length))
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
            raise CheckpointError(f"{label}: truncated: {name} ends at byte {stop} of the data, which has {data}")
        end = stop
    if end != data:
        raise CheckpointError(f"{label}: the tensors end at byte {end} of the data, which has {data}")
    return [
        StoredTensor(file, name, dtype, shape, 8 + length + begin)
        for name, (dtype, shape, (begin, _)) in zip(header, found, strict=True)
    ]


def _check_entry(name: str, entry: Any, label: str) -> tuple[np.dtype, tuple[int, ...], Bounds]:
    """Returns type, shape and data offsets of one tensor from its header entry."""
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


def row_blocks(tensor: StoredTensor, rows: Bounds) -> Iterator[Bounds]:
    """Yields blocks of rows of at most `BLOCK` bytes, or single rows if one is larger. Ignores rows past the tensor's end."""
    count = max(1, BLOCK // max(1, math.prod(tensor.shape[1:]) * tensor.dtype.itemsize))
    end = min(rows[1], tensor.shape[0])
    for first in range(rows[0], end, count):
        yield first, min(first + count, end)


def read_block(folder: CheckpointFolder, tensor: StoredTensor, rows: Bounds, columns: Bounds) -> np.ndarray:
    """Reads part of a tensor, as a matrix of shape[0] rows, in the type of the file.

    Reads exactly the requested bytes of a local file. Reads whole rows of a remote file, because a request costs more than
    the bytes.

    Raises:
      CheckpointError: If the file is truncated or cannot be read.
    """
    try:
        return (_read_local if folder.is_local else _read_remote)(folder, tensor, rows, columns)
    except OSError as error:
        raise CheckpointError(f"{folder.label(tensor.file)}: cannot read {tensor.name} ({error})") from error


def _read_remote(folder: CheckpointFolder, tensor: StoredTensor, rows: Bounds, columns: Bounds) -> np.ndarray:
    width = math.prod(tensor.shape[1:])
    start, stop = (tensor.start + row * width * tensor.dtype.itemsize for row in rows)
    data = folder.read(tensor.file, start, stop)
    if len(data) < stop - start:
        raise OSError("the file ends too early")
    return np.frombuffer(data, tensor.dtype).reshape(-1, width)[:, slice(*columns)]


def _read_local(folder: CheckpointFolder, tensor: StoredTensor, rows: Bounds, columns: Bounds) -> np.ndarray:
    width = math.prod(tensor.shape[1:])
    block = np.empty((rows[1] - rows[0], columns[1] - columns[0]), tensor.dtype)
    pieces = block.reshape(1, -1) if columns == (0, width) else block
    with open(f"{folder.root}/{tensor.file}", "rb", buffering=0) as file:
        for row, piece in enumerate(pieces.view(np.uint8), start=rows[0]):
            file.seek(tensor.start + (row * width + columns[0]) * tensor.dtype.itemsize)
            done = 0
            while done < len(piece):
                read = file.readinto(piece.data[done:])
                if not read:
                    raise OSError("the file ends too early")
                done += read
    return block


class TensorWriter:
    """A writer of one file of tensors. The constructor takes types and shapes, and `append` must follow their order."""

    def __init__(self, path: Path, tensors: Mapping[str, jax.ShapeDtypeStruct]):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
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
    """Returns the size of a tensor in a file (bytes)."""
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
