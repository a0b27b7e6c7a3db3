"""Table of a report's episodes, with one row per episode, as CSV for spreadsheets and JSON for scripts."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitar_jax.episodes.sample import PATIENT
from vitar_jax.evaluation.report_files import whole
from vitar_jax.evaluation.results import MOST_VALUES


def keep_facets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Removes metadata that identifies a patient or has too many values to filter by from the rows, in place.

    Returns:
      The remaining keys. Each has at least two values, and more than two only if a value has two samples on average.
    """
    values: dict[str, set[Any]] = {}
    for row in rows:
        for key in row:
            if key.startswith("metadata/"):
                values.setdefault(key, set()).add(row[key])
    patient = {f"metadata/{key}" for key in PATIENT}
    most = min(MOST_VALUES, max(2, len({row["sample_id"] for row in rows}) // 2))
    facets = [key for key, found in values.items() if 1 < len(found) <= most and key not in patient]
    for row in rows:
        for key in values.keys() - set(facets):
            row.pop(key, None)
    return facets


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Encodes rows as CSV for spreadsheets. A byte order mark declares UTF-8. A ' keeps text from being read as a formula."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_cell(column) for column in columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return whole(text.getvalue()).encode("utf-8-sig")


def as_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Encodes rows as a JSON list of objects."""
    return whole(json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
