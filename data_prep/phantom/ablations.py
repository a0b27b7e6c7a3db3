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
      rows: Names of our rows.
      paper: The paper's order, best first, as far as it is known. Its numbers are means over VQA-RAD, SLAKE and PathVQA.
    """

    title: str
    rows: tuple[str, ...]
    paper: str


TABLES = (
    Table(
        "Table 2, parts",
        ("full", "without_navigator", "without_sampler", "without_expert", "scan_alone", "drill_alone"),
        "full 71.5, scan_alone 66.6, without_sampler 66.0, drill_alone 65.6, without_navigator 62.8, without_expert 61.0",
    ),
    Table("Table 3, searches", ("searches_2", "searches_4", "full", "searches_8"), "6 (full) is best; the rest is not known"),
    Table("Table 3, gazes", ("gazes_2", "gazes_3", "full", "gazes_5"), "3 is best; the rest is not known"),
    Table(
        "Table 5, source of the expert's stream",
        ("full", "replay_newest", "replay_best", "random_regions"),
        "full is best, random_regions is 12.8 points below it; the numbers of replay are not known",
    ),
)


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns each table's rows in the order of their accuracy, with the paper's order below it."""
    lines = []
    for table in TABLES:
        ours = sorted(table.rows, key=lambda row: -results[row]["accuracy"])
        shown = ", ".join(f"{row} {100 * results[row]['accuracy']:.1f}" for row in ours)
        lines += [f"{table.title}: {shown}", f"  in the paper: {table.paper}"]
    return "\n".join(lines)
