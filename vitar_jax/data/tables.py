"""Readers of CSV, JSONL, JSON and Parquet files, row by row. An error names the file, the row and the key."""

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
    """A record and its location.

    The methods raise DataError, which names file, record and key.

    Attributes:
      values: Values by column.
      where: File and line, or file and record number.
    """

    values: Mapping[str, Any]
    where: str

    def text(self, key: str) -> str:
        """Returns text, or a number as text, stripped of surrounding white space."""
        if key not in self.values:
            raise DataError(f"{self.where}: {key} is missing")
        return text(self.values[key], f"{self.where}: {key}")

    def text_or_nothing(self, key: str) -> str:
        """Returns the same as `text`, or an empty string if the value is missing or empty."""
        value = self.values.get(key)
        return "" if value is None or (isinstance(value, str) and not value.strip()) else self.text(key)

    def list(self, key: str) -> list[Any]:
        """Returns a list."""
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return value

    def wrong(self, key: str, must: str) -> DataError:
        """Returns an error saying that `key` has the wrong value.

        Args:
          must: The expected value, as a noun phrase.
        """
        value = self.values.get(key)
        return DataError(f"{self.where}: {key}: got {_short(value)}, expected {must}")


def text(value: Any, where: str) -> str:
    """Returns text, or a number as text, stripped of surrounding white space.

    Raises:
      DataError: If the value is neither text nor a number, is empty, or cannot be encoded as UTF-8.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError(f"{where}: got {_short(value)}, expected text")
    stripped = str(value).strip()
    try:
        stripped.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can escape
        raise DataError(f"{where}: got {value!r}, expected text that can be encoded as UTF-8 ({error.reason})") from error
    return stripped


def csv_rows(file: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Reads the rows of a CSV file, without their empty cells. A row's location is the line that it starts on.

    Args:
      needed: Names of required columns.

    Raises:
      DataError: If the file cannot be read, if a needed column is missing, if a column occurs twice, or if a row has too many
        cells.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            if not set(needed) <= set(columns) or len(set(columns)) < len(columns):
                raise DataError(f"{file}:1: got the columns {columns}, expected unique names that include {_listed(needed)}")
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(columns):
                    raise DataError(f"{file}:{line}: got {len(cells)} cells, expected at most {len(columns)}, one per column")
                if any(cells):
                    full = {column: cell for column, cell in zip(columns, cells, strict=False) if cell.strip()}
                    yield Row(full, f"{file}:{line}")
                line = reader.line_num + 1
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def jsonl_rows(file: Path) -> Iterator[Row]:
    """Reads one JSON object per line, without its null and empty values. A row's location is its line.

    Raises:
      DataError: If the file cannot be read, or if a line is not a JSON object.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            for line, content in enumerate(opened, start=1):
                if not content.strip():
                    continue
                try:
                    row = json.loads(content)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{file}:{line}: invalid JSON ({error})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{file}:{line}: got a {type(row).__name__}, expected an object")
                yield Row({key: value for key, value in row.items() if value not in (None, "")}, f"{file}:{line}")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def json_rows(file: Path) -> Iterator[Row]:
    """Reads the objects of a JSON list. A row's location is its index, from 0.

    Raises:
      DataError: If the file cannot be read, or does not hold a list of objects.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{file}: got a {type(records).__name__}, expected a list of records")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{file}, record {number}: got a {type(record).__name__}, expected an object")
        yield Row(record, f"{file}, record {number}")


def parquet_rows(file: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Reads the rows of a Parquet file in small batches, since rows may hold images. A row's location is its index, from 0.

    Args:
      needed: Names of required columns.

    Raises:
      DataError: If the file cannot be read, or if a needed column is missing.
    """
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            columns = opened.schema_arrow.names
            if not set(needed) <= set(columns):
                raise DataError(f"{file}: got the columns {columns}, expected them to include {_listed(needed)}")
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
