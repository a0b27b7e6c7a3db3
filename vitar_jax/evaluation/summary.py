"""Summary table at the top of a report: columns, titles and units."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitar_jax.evaluation.measures import MEASURES

Rows = dict[str, dict[str, object]]


@dataclass(frozen=True)
class SummaryTable:
    """A table of text. Rows have a name and one cell per column. A cell is a text and a note in smaller type, or ""."""

    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def summary_rows(name: str, found: Mapping[str, Any]) -> Rows:
    """Returns the rows of one benchmark from its `scores.json`: one with measures and primary rule, one per other rule."""
    primary = found["primary"]
    first = {"n": found["samples"], "score": _score(found, primary), "rule": primary}
    masks = {rule: scores.get("masks", {}) for rule, scores in found["rules"].items()}
    rows: Rows = {
        name: {**first, **found["measures"], **masks[primary], **found["per_sample"], "failures": found["failures"]}
    }
    for rule, scores in found["rules"].items():
        if rule != primary and (scores["n"] or masks[rule]):
            rows[f"{name}, {rule}"] = {"n": scores["n"], "score": _score(found, rule), "rule": rule, **masks[rule]}
        for title, pooled in scores.get("classes", {}).items():
            rows[f"{name}, {rule}, {title}"] = {"rule": rule, **pooled}
    return rows


def _score(found: Mapping[str, Any], rule: str) -> dict[str, Any]:
    scores = found["rules"][rule]
    return {"value": scores["score"], "interval": scores["interval"]}


def summary_table(summary: Mapping[str, Mapping[str, object]]) -> SummaryTable:
    """Formats {row: {key: value}} as a table. Omits columns that have no value in any row.

    A value is a number, a text, or {"value": ..., "interval": (low, high) or None}.
    """
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "n": ("Episodes", "{:,.0f}".format),
        "score": ("Score", _percent),
        "rule": ("Rule", str),
    }
    columns |= {
        measure.name: (measure.title or measure.name.replace("_", " "), measure.text) for measure in MEASURES.values()
    }
    known = [key for key in columns if any(key in row for row in summary.values())]
    others = [key for row in summary.values() for key in row if key not in columns]
    keys = [key for key in dict.fromkeys(known + others) if any(_value(r.get(key)) is not None for r in summary.values())]

    def cell(key: str, value: object) -> tuple[str, str]:
        interval = value.get("interval") if isinstance(value, Mapping) else None
        value = _value(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–", ""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return str(value), ""
        write = columns[key][1] if key in columns else "{:.4g}".format
        if not isinstance(interval, list | tuple):
            return write(value), ""
        low, high = (write(bound).removesuffix(" %") for bound in interval)
        return write(value), f"{low} – {high}"

    return SummaryTable(
        columns=[columns[key][0] if key in columns else key.replace("_", " ") for key in keys],
        rows=[(name, [cell(key, row.get(key)) for key in keys]) for name, row in summary.items()],
    )


def _value(cell: object) -> object:
    return cell.get("value") if isinstance(cell, Mapping) else cell
