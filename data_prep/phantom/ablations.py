"""Ablations of MedEyes on phantoms: the searches of each row of the paper's tables 2, 3 and 5, and the tables of their results.

The expert errs: it misses spots, and returns regions where nothing is. So it can matter how it drills, draws and ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from data_prep.gaze.annotated import Rates
from data_prep.gaze.sampler import Sampler
from data_prep.phantom.gazes import SETTINGS, searches
from vitar_jax.data.traces import Trace

RATES = Rates(misses=0.15, false_regions=0.3)
MOST_SEARCHES = 8

START = "one_gaze"  # row of the weights that all others start from
GAZES = "data_prep.phantom.proof:gazes"
UNKNOWN = "not known"


# --- searches ---------------------------------------------------------------------------------------


def _searches(**changes: Any) -> partial[tuple[Trace, ...]]:
    """Returns a function from a sample to its searches, under changed rules."""
    settings = replace(SETTINGS, rules=replace(SETTINGS.rules, **changes), searches=MOST_SEARCHES)
    return partial(searches, rates=RATES, settings=settings)


full = _searches()
# Without the navigator, a search looks at the regions of a scan in their order, does not drill, and no confidence ends it.
without_navigator = _searches(navigator="scan", sampler=Sampler("first"), threshold=1.0)
without_sampler = _searches(sampler=Sampler("first"))
scan_alone = _searches(navigator="scan")
drill_alone = _searches(navigator="drill")
random_regions = _searches(navigator="random")
gazes_2, gazes_3, gazes_5 = (_searches(most_gazes=most) for most in (2, 3, 5))


# --- tables -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
      paper: The paper's place of each of our rows, with its number where that is known, best first.
    """

    title: str
    paper: Mapping[str, str]


TABLES = (
    Table(
        "Table 2: parts",
        {
            "full": "1 (71.5 %)",
            "scan_alone": "2 (66.6 %)",
            "without_sampler": "3 (66.0 %)",
            "drill_alone": "4 (65.6 %)",
            "without_navigator": "5 (62.8 %)",
            "without_expert": "6 (61.0 %)",
        },
    ),
    Table("Table 3: searches", {"full": "1", **dict.fromkeys(("searches_2", "searches_4", "searches_8"), UNKNOWN)}),
    Table("Table 3: gazes", {"gazes_3": "1", **dict.fromkeys(("gazes_2", "full", "gazes_5"), UNKNOWN)}),
    Table(
        "Table 5: source of the expert's stream",
        {"full": "1", "random_regions": "12.8 points below", **dict.fromkeys(("replay_newest", "replay_best"), UNKNOWN)},
    ),
)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the tables in Markdown: each row's accuracy and place, with the paper's place beside it.

    Args:
      results: As in `Proof.conclude`. Rows that are not among them are left out.
    """
    start = results[START]
    lines = [
        "# Ablations of MedEyes on phantoms",
        "",
        f"Each row: greedy episodes of {start['n']} held-out phantoms. Intervals are of 95 %, over phantoms, not over training",
        f"runs. All rows start from the same weights, which are right on {_right(start)}. The paper's numbers are means over",
        f"VQA-RAD, SLAKE and PathVQA; where its place is {UNKNOWN}, no source tells it.",
        "",
        "| | right | gazes | place | place in the paper |",
        "|---|---|---|---|---|",
    ]
    for table in TABLES:
        rows = {row: results[row] for row in table.paper if row in results}
        if not rows:
            continue
        lines.append(f"| **{table.title}** | | | | |")
        for name, row in rows.items():
            place = 1 + sum(other["accuracy"] > row["accuracy"] for other in rows.values())
            cells = (name.replace("_", " "), _right(row), f"{row[GAZES]:.2f}", str(place), table.paper[name])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _right(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
