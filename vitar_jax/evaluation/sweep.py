"""Dose curves: the score of an evaluation under a control of growing strength."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitar_jax.data.interventions import label
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.controls import Variant
from vitar_jax.evaluation.figures import dose_figure
from vitar_jax.evaluation.reliance import reliance_of
from vitar_jax.evaluation.results import percent, percent_interval, read_scores
from vitar_jax.runtime.crash_safe import atomic_replace

# Doses of each sweep, in order, with the control of each; the first is the evaluation without a control. As in MedVIGIL (arXiv
# 2605.07919), standard deviations go up to 32 pixels, and the erased shares are 33, 67 and 100 percent.
SWEEPS: Mapping[str, Mapping[str, str]] = {
    "blur": {"0": "", **{f"{sigma}": f"blur:{sigma}" for sigma in (1, 2, 4, 8, 16, 32)}},
    "erased": {"0": "", **{f"{percent}": f"erased:{percent}" for percent in (33, 67, 100)}},
}
UNITS = {"blur": "standard deviation, px", "erased": "share of the region, %"}


def sweep_variants(sweep: str, variant: Variant, name: str, stage: str) -> dict[str, Variant]:
    """Returns the variants of a sweep by the names of their results, of which the first has no control.

    Args:
      name: Name of the first result; if empty, results are named by `stage` and variant.

    Raises:
      ConfigError: If the variant has a control of its own.
    """
    if variant.control:
        raise ConfigError("--sweep: chooses controls itself; leave --control out")
    doses = [dataclasses.replace(variant, control=control) for control in SWEEPS[sweep].values()]
    return {"-".join(filter(None, [name, label(v.control)] if name else [stage, v.name])): v for v in doses}


def dose_curve(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Returns the row of each dose, from the scored folders of a sweep by dose. The first is the one without a control.

    A row has `dose`, `score` with its `interval` and `n`, under the primary rule, and `lost`: the score without the control
    minus the score under it, paired by sample (`added` of `evaluation/reliance.py`), or None for the first dose.
    """
    rows = []
    real, *_ = folders.values()
    for dose, folder in folders.items():
        found = read_scores(folder)
        scores, relied = found["rules"][found["primary"]], reliance_of(real, folder)
        rows.append(
            {
                "dose": dose,
                "score": scores["score"],
                "interval": scores["interval"],
                "n": scores["n"],
                "lost": relied and relied["added"],
            }
        )
    return rows


def write_dose_curve(name: str, folders: Mapping[str, Path], directory: Path) -> str:
    """Writes `sweep.json` and `sweep.png` of the sweep `name` to a directory, and returns the table to print."""
    rows = dose_curve(folders)
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_replace(directory / "sweep.json") as partial:
        partial.write_text(json.dumps(rows, indent=2) + "\n")
    dose_figure(rows, directory / "sweep.png", unit=f"{name} ({UNITS[name]})")
    lines = [f"{name:>8s}{'n':>7s}{'score':>9s}  {'95 % interval':18s}{'lost':>8s}  95 % interval, paired"]
    for row in rows:
        line = f"{row['dose']:>8s}{row['n']:7,d}{percent(row['score']):>9s}  {percent_interval(row['interval']):18s}"
        lost = row["lost"]
        lines.append(f"{line}{percent(lost['value']):>8s}  {percent_interval(lost['interval'])}" if lost else line.rstrip())
    return "\n".join(lines)
