"""Finds the records in files, by the files' content: JSON, JSON Lines, and Parquet."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vitar_jax.errors import DataError

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_HEAD = 1 << 10  # bytes in which the content of a file shows
_ROWS = 64  # rows of a Parquet file that are read at a time


class Unread(Counter[str]):
    """What could not be read: places and reasons, each with the number of records."""

    def add(self, where: str, reason: object, records: int = 1) -> None:
        text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)
        self[f"{where}: {' '.join(text.split())[:300]}"] += records


def files_of(path: Path) -> list[Path]:
    """Returns a file, or all files of a folder and its subfolders, in order.

    Raises:
      DataError: If there is no such file or folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    return sorted(one for one in path.rglob("*") if one.is_file())


def read_records(path: Path, unread: Unread) -> Iterator[tuple[str, Any]] | None:
    """Yields the records of a file, each with its place. None if the file's content is of no kind that has records.

    Adds what is damaged to `unread`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        unread.add(str(path), error.strerror)
        return iter(())
    if head.startswith(b"PAR1"):
        return _parquet(path, unread)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"{", b"[")):
        return _json(path, unread)
    if head.startswith(_PICKLES) and (path.suffix in (".pt", ".pkl", ".pth") or not head.startswith(b"PK")):
        unread.add(str(path), "is a pickle, which could run code and is not opened")
        return iter(())
    return None


def _parquet(path: Path, unread: Unread) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", record
    except (ArrowException, OSError, ValueError) as error:
        unread.add(f"{path}: after row {number}", error)


def _json(path: Path, unread: Unread) -> Iterator[tuple[str, Any]]:
    """Yields the objects of a file that is one JSON value, or has one per line."""
    with path.open("rb") as file:
        first = file.readline().strip()
        file.seek(0)
        try:
            alone = not isinstance(json.loads(first), dict)
        except (ValueError, RecursionError):
            alone = True
        if not alone:
            yield from _lines(path, file, unread)
            return
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:
            unread.add(str(path), f"is neither JSON nor JSON Lines ({error})")
            return
    values = value if isinstance(value, list) else [value]
    for number, one in enumerate(values):
        yield f"{path}[{number}]" if isinstance(value, list) else str(path), one


def _lines(path: Path, file: BinaryIO, unread: Unread) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                unread.add(f"{path}:{number}", f"is damaged ({error})")
                continue
            yield f"{path}:{number}", value
