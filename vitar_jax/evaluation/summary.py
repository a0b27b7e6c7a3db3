"""The table of scores on top of a report: which columns, under which names, in which units."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SummaryTable:
    """Rows of text: a name and one cell a column; a cell is its text and a smaller note, or ""."""

    columns: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


# Fields of `Scores` in the words of a reader. Other keys show as they are.
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "n": ("Episodes", "{:,.0f}".format),
    "accuracy": ("Accuracy", _percent),
    "iou": ("IoU", "{:.2f}".format),
    "centre_error_px": ("Centre error", "{:.1f} px".format),
    "tight_box_share": ("Tight boxes", _percent),
    "action_success": ("Valid actions", _percent),
    "answered": ("Answered", _percent),
    "mean_reward": ("Mean reward", "{:.2f}".format),
}


def summary_table(summary: Mapping[str, Mapping[str, object]]) -> SummaryTable:
    """The mapping {row: {key: value}} as text. An `interval` stands under its `accuracy`; a column with no
    value in any row is left out."""
    known = [key for key in _COLUMNS if any(key in row for row in summary.values())]
    others = [key for row in summary.values() for key in row if key not in _COLUMNS and key != "interval"]
    keys = [key for key in dict.fromkeys(known + others) if any(r.get(key) is not None for r in summary.values())]
    return SummaryTable(
        columns=[_COLUMNS[key][0] if key in _COLUMNS else key.replace("_", " ") for key in keys],
        rows=[(name, [_cell(key, row) for key in keys]) for name, row in summary.items()],
    )


def _cell(key: str, row: Mapping[str, object]) -> tuple[str, str]:
    value, interval = row.get(key), row.get("interval")
    if key == "accuracy" and isinstance(interval, list | tuple) and len(interval) == 2:
        low, high = interval
        return _text(key, value), f"{100 * low:.1f} – {100 * high:.1f}"
    return _text(key, value), ""


def _text(key: str, value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _COLUMNS[key][1](value) if key in _COLUMNS else f"{value:.4g}"
    return str(value)
