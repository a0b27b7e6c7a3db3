"""Tables of records: CSV, JSONL, JSON and Parquet, read row by row; what is wrong with a row is named."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from vitar_jax.errors import DataError


@dataclass(frozen=True)
class Row:
    """A record, and where it stands: file and line or number.

    The methods raise DataError, which names file, record and key.
    """

    values: Mapping[str, Any]
    where: str

    def text(self, key: str) -> str:
        """Text, or a number as text, without the spaces around it."""
        if key not in self.values:
            raise DataError(f"{self.where}: {key} is missing")
        return text(self.values[key], f"{self.where}: {key}")

    def text_or_nothing(self, key: str) -> str:
        """The same, where it may also be missing or empty."""
        value = self.values.get(key)
        return "" if value is None or (isinstance(value, str) and not value.strip()) else self.text(key)

    def list(self, key: str) -> list[Any]:
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def wrong(self, key: str, must: str) -> DataError:
        """The error that `key` holds something else than it must."""
        value = self.values.get(key)
        return DataError(f"{self.where}: {key} is {_short(value)}, it must be {must}")


def text(value: Any, where: str) -> str:
    """Text without the spaces around it; numbers count as text.

    Raises:
      DataError: it is something else, or empty, or no file can hold it.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(f"{where} is {_short(value)}, it must be text")
    stripped = str(value).strip()
    try:
        stripped.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
        raise DataError(f"{where} is {value!r}, which no file can hold ({error.reason})") from error
    return stripped


def csv_rows(file: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Rows by column, without what is empty; a row's place is the line it begins on.

    Raises:
      DataError: the file cannot be read, lacks a needed column or has one twice, or a row has too many cells.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            if not set(needed) <= set(columns) or len(set(columns)) < len(columns):
                raise DataError(f"{file}:1: the columns are {columns}; they must differ, and {_listed(needed)} be among them")
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(columns):
                    raise DataError(f"{file}:{line}: {len(cells)} cells for {len(columns)} columns")
                if any(cells):
                    full = {column: cell for column, cell in zip(columns, cells, strict=False) if cell.strip()}
                    yield Row(full, f"{file}:{line}")
                line = reader.line_num + 1
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def jsonl_rows(file: Path) -> Iterator[Row]:
    """One JSON object a line, without what is null or empty; a row's place is its line.

    Raises:
      DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            for line, content in enumerate(opened, start=1):
                if not content.strip():
                    continue
                try:
                    row = json.loads(content)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{file}:{line}: is no JSON ({error})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{file}:{line}: is a {type(row).__name__}, not an object")
                yield Row({key: value for key, value in row.items() if value not in (None, "")}, f"{file}:{line}")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def json_rows(file: Path) -> Iterator[Row]:
    """The objects of one JSON list; a row's place is its number, from 0.

    Raises:
      DataError: the file cannot be read, or is no list of objects.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{file}: holds a {type(records).__name__}, not a list of records")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{file}, record {number}: is a {type(record).__name__}, not an object")
        yield Row(record, f"{file}, record {number}")


def parquet_rows(file: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a Parquet file, a few at a time, for they may hold images; a row's place is its number, from 0.

    Raises:
      DataError: the file cannot be read, or lacks a needed column.
    """
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            columns = opened.schema_arrow.names
            if not set(needed) <= set(columns):
                raise DataError(f"{file}: the columns are {columns}; {_listed(needed)} must be among them")
            number = 0
            for batch in opened.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    yield Row(row, f"{file}, row {number}")
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({' '.join(str(error).split())})") from error


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names)) or "any"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
