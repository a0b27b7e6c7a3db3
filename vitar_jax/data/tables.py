"""Readers of CSV, JSONL, JSON and Parquet files, row by row. An error names the file, the row and the key.

A missing value has no key in a row, whatever the format: null, NaN, and blank text, as in an empty cell of CSV. The texts
"None", "NA" and "nan" are text.
"""

import ast
import csv
import json
import math
import re
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
      values: Values by column, without missing ones.
      where: File and line, or file and record number.
      number: Index in the file, from 0, which also counts invalid records.
    """

    values: Mapping[str, Any]
    where: str
    number: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {key: value for key, value in self.values.items() if not is_missing(value)})

    def text(self, key: str) -> str:
        """Returns text, or a number as text, stripped of surrounding white space."""
        if key not in self.values:
            raise DataError(f"{self.where}: {key} is missing")
        return text(self.values[key], f"{self.where}: {key}")

    def text_or_nothing(self, key: str) -> str:
        """Returns the same as `text`, or an empty string if the value is missing."""
        return self.text(key) if key in self.values else ""

    def list(self, key: str) -> list[Any]:
        """Returns a list, which may be written as text; see `as_list`."""
        value = as_list(self.values.get(key), f"{self.where}: {key}")
        if value is None:
            raise self.wrong(key, "a list")
        return value

    def wrong(self, key: str, must: str) -> DataError:
        """Returns an error saying that `key` has the wrong value.

        Args:
          must: The expected value, as a noun phrase.
        """
        value = self.values.get(key)
        return DataError(f"{self.where}: {key}: got {_short(value)}, expected {must}")


def is_missing(value: Any) -> bool:
    """Returns whether a value is null, NaN or blank text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())


# A list in Python or NumPy syntax: brackets, and inside them something that is no plain word.
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_BRACKETED = re.compile(r"\[.*\]|\(\s*['\"].*\)|\{.*\}", re.DOTALL)
_NUMPY = re.compile(rf"\[\s*(?:(?:{_QUOTED})(?:\s+(?:{_QUOTED}))+|{_NUMBER}(?:\s+{_NUMBER})+)\s*\]", re.DOTALL)
_ARRAY = re.compile(r"array\((\[.*?\])(?:,\s*dtype=[^\]]*)?\)", re.DOTALL)
_ITEM = re.compile(rf"{_QUOTED}|{_NUMBER}", re.DOTALL)
_TEXT = re.compile(_QUOTED, re.DOTALL)
_OPENED = re.compile(r"(?:array\()?[\[{]\s*(?:['\"]|nan\b)")  # begins like a list or an object of texts


def as_list(value: Any, where: str) -> list[Any] | None:
    """Returns a list that may be written as text, as pandas writes lists to CSV: in the syntax of JSON, Python or NumPy.

        ["a", "b"]    ['a', 'b']    ('a', 'b')    ['a' 'b']    array(['a', 'b'], dtype=object)

    Returns:
      The list, or None if the value is neither a list nor text in one of these forms.

    Raises:
      DataError: If text begins like a list of texts but is not one, for example because it was cut short.
    """
    value = as_literal(value, where)
    return list(value) if isinstance(value, list | tuple) else None


def as_literal(value: Any, where: str) -> Any:
    """Returns the list, tuple or mapping that text stands for, or else the value itself. See `as_list`."""
    if not isinstance(value, str):
        return value
    written = value.strip()
    if array := _ARRAY.fullmatch(written):
        written = array[1]
    if _NUMPY.fullmatch(written):
        return [ast.literal_eval(item) for item in _ITEM.findall(written)]
    if _BRACKETED.fullmatch(written):
        try:
            return json.loads(written)
        except (ValueError, RecursionError):
            pass
        try:
            found = ast.literal_eval(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
        # Python would join adjacent texts, as of ['a', 'b' 'c'].
        if isinstance(found, list | tuple | dict) and not re.search(r"''\s*''", _TEXT.sub("''", written)):
            return found
    if _OPENED.match(written):
        raise DataError(f"{where}: got {_short(value)}, which begins like a list of texts but cannot be read as one")
    return value


def text(value: Any, where: str) -> str:
    """Returns text, or a number as text, stripped of surrounding white space.

    Raises:
      DataError: If the value is neither text nor a finite number, is empty, or cannot be encoded as UTF-8.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not (isinstance(value, str) and value.strip()):
        raise DataError(f"{where}: got {_short(value)}, expected text")
    stripped = str(value).strip()
    try:
        stripped.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can escape
        raise DataError(f"{where}: got {value!r}, expected text that can be encoded as UTF-8 ({error.reason})") from error
    return stripped


def csv_rows(file: Path, needed: Sequence[str] = (), wrong: list[DataError] | None = None) -> Iterator[Row]:
    """Reads the rows of a CSV file. A row's location is the line that it starts on.

    Args:
      needed: Names of required columns.
      wrong: Collects the errors of single rows, which are then left out. If None, the first one is raised.

    Raises:
      DataError: If the file cannot be read, if a needed column is missing, if a column occurs twice, or if a row has too many
        cells.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may hold an image in base64
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            if not set(needed) <= set(columns) or len(set(columns)) < len(columns):
                raise DataError(f"{file}:1: got the columns {columns}, expected unique names that include {_listed(needed)}")
            line, number = reader.line_num + 1, 0
            for cells in reader:
                if len(cells) > len(columns):
                    words = f"got {len(cells)} cells, expected at most {len(columns)}, one per column"
                    _give(DataError(f"{file}:{line}: {words}"), wrong)
                elif any(cells):
                    yield Row(dict(zip(columns, cells, strict=False)), f"{file}:{line}", number)
                line, number = reader.line_num + 1, number + any(cells)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _give(error: DataError, wrong: list[DataError] | None) -> None:
    if wrong is None:
        raise error
    wrong.append(error)


def jsonl_rows(file: Path, wrong: list[DataError] | None = None) -> Iterator[Row]:
    """Reads one JSON object per line. A row's location is its line.

    Args:
      wrong: Collects the errors of single lines, which are then left out. If None, the first one is raised.

    Raises:
      DataError: If the file cannot be read, or if a line is not a JSON object.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            filled = ((line, content) for line, content in enumerate(opened, start=1) if content.strip())
            for number, (line, content) in enumerate(filled):
                try:
                    row = json.loads(content)
                except (ValueError, RecursionError) as error:
                    _give(DataError(f"{file}:{line}: invalid JSON ({error})"), wrong)
                    continue
                if isinstance(row, dict):
                    yield Row(row, f"{file}:{line}", number)
                else:
                    _give(DataError(f"{file}:{line}: got a {type(row).__name__}, expected an object"), wrong)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def json_rows(file: Path, wrong: list[DataError] | None = None) -> Iterator[Row]:
    """Reads the objects of a JSON list. A row's location is its index, from 0.

    Args:
      wrong: Collects the errors of single records, which are then left out. If None, the first one is raised.

    Raises:
      DataError: If the file cannot be read, or does not hold a list, or if a record is not an object.
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
        if isinstance(record, dict):
            yield Row(record, f"{file}, record {number}", number)
        else:
            _give(DataError(f"{file}, record {number}: got a {type(record).__name__}, expected an object"), wrong)


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
                    yield Row(row, f"{file}, row {number}", number)
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as Parquet ({' '.join(str(error).split())})") from error


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names)) or "any"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
