"""Compares two evaluations of the same samples: writes the difference, interval and p-value under each rule to CSV and JSON.

Examples:
  python -m vitar_jax.compare runs/vqa/evaluation/sft runs/vqa/evaluation/grpo
  python -m vitar_jax.compare runs/quickstart/evaluation/grpo runs/quickstart/evaluation/grpo-blank --output=runs/blank

A and B are folders with verdicts, written by `python -m vitar_jax.evaluate --phase=score`. Rules that scored only one of the
two are omitted. A rule for masks has a row for each of its scores. A * marks the primary rule, if both evaluations have the
same.
"""

import csv
import json
from pathlib import Path
from typing import Any

from absl import flags

from vitar_jax.evaluation.comparison import compare, comparison_lines
from vitar_jax.evaluation.reliance import reliance_lines
from vitar_jax.runtime import cli
from vitar_jax.runtime.help import subject


def main(first: str, second: str) -> None:
    found = compare(Path(first), Path(second))
    output = Path(flags.FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.json").write_text(json.dumps(found, indent=2) + "\n")
    rows = [{"rule": rule, **_flat(row)} for rule, row in found["rules"].items()]
    with (output / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{found['samples']} samples in both, {found['only_in_first']} only in A, {found['only_in_second']} only in B")
    print(comparison_lines(found))
    if found["reliance"]:
        print(reliance_lines(found["reliance"]))
    print(f"results: {output / 'comparison.json'}, {output / 'comparison.csv'}")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Replaces the interval by its ends, `low` and `high`."""
    low, high = row["interval"] or (None, None)
    return {key: value for key, value in row.items() if key != "interval"} | {"low": low, "high": high}


def define_flags() -> None:
    with subject("Output"):
        flags.DEFINE_string("output", "comparison", "Directory to write comparison.json and comparison.csv to.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, operands=("A", "B"))
