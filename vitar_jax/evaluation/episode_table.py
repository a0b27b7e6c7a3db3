"""The table of a report's episodes, for spreadsheets and scripts: a row an episode, as CSV and as JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitar_jax.evaluation.outcomes import PATIENT
from vitar_jax.evaluation.report_files import whole
from vitar_jax.evaluation.results import MOST_VALUES


def keep_facets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Takes metadata from the rows that does not sort their samples into a few, or says whose image it is.

    Returns:
      What is left: keys with two values, or more if each is that of two samples or more on average.
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
    """With a byte order mark, by which spreadsheets know UTF-8. Text that one would take for a formula has a ' in front."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_cell(column) for column in columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return whole(text.getvalue()).encode("utf-8-sig")


def as_json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A list of objects."""
    return whole(json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
