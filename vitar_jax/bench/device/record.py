"""The record of a device benchmark: `device.json`, and a Markdown table for the documentation."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitar_jax.bench.device.parts import Check, Outcome, Rates, Speed
from vitar_jax.parallel.topology import Chip
from vitar_jax.runtime.cli import duration

# Targets on an accelerator: shares of the measured rates, and the largest share of a step of GRPO that the host may take.
MATRIX_SHARE, COPY_SHARE, HOST_SHARE = 0.55, 0.7, 0.1
_HOST = ("host", "tools", "reward", "batch")  # phases in which the device waits


def make_record(facts: Mapping[str, Any], outcomes: Sequence[Outcome], chip: Chip | None, *, targets: bool) -> dict[str, Any]:
    """Returns the record as JSON.

    Args:
      facts: Device, versions and date.
      chip: Published rates of a device, from which `vitar_jax.plan` makes its floors. If None, the measured rates.
      targets: Whether the targets apply.
    """
    rows = [row for outcome in outcomes for row in outcome.rows]
    rates = next((row for row in rows if isinstance(row, Rates)), None)
    floors = chip or (Chip(math.inf, rates.flops, rates.bandwidth, math.inf) if rates else None)
    speeds = [_speed(row, rates, floors, targets=targets) for row in rows if isinstance(row, Speed)]
    problems = [f"{outcome.name}: {outcome.error}" for outcome in outcomes if outcome.error]
    for speed in speeds:
        if chip and speed.get("plan_share", 0) > 1:
            took = f"took {duration(speed['seconds'])}, less than plan's floor of {duration(speed['plan_seconds'])}"
            problems.append(f"{speed['name']} {speed['size']}: {took}")
    return {
        **facts,
        "published_rates": dataclasses.asdict(chip) if chip else None,
        "rates": dataclasses.asdict(rates) if rates else None,
        "checks": [dataclasses.asdict(row) | {"passed": row.passed} for row in rows if isinstance(row, Check)],
        "speeds": speeds,
        "parts": [
            {"name": one.name, "state": one.state, "expected_minutes": one.minutes, "seconds": one.seconds, "error": one.error}
            for one in outcomes
        ],
        "problems": problems,
    }


def _speed(row: Speed, rates: Rates | None, chip: Chip | None, *, targets: bool) -> dict[str, Any]:
    """Returns a row with its share of the rate that limits it, the target, and the floor that `vitar_jax.plan` would state."""
    found: dict[str, Any] = {"name": row.name, "size": row.size, "seconds": row.seconds, "flops": row.flops}
    if row.phases:
        share, of, target = sum(row.phases.get(phase, 0.0) for phase in _HOST) / row.seconds, "step, by the host", HOST_SHARE
        found["phases"] = row.phases
    elif row.moved:
        share, of, target = rates and row.moved / rates.bandwidth / row.seconds, "copy rate", COPY_SHARE
        found["moved"] = row.moved
    else:
        share, of, target = rates and row.flops / rates.flops / row.seconds, "matrix rate", MATRIX_SHARE
    if row.passed and chip:
        found["plan_seconds"] = max(chip.floors(row.flops, row.passed).values())
        found["plan_share"] = found["plan_seconds"] / row.seconds
    found |= {"share": share, "of": of, "target": target if targets else None}
    if targets and share is not None:
        found["met"] = share < target if row.phases else share >= target
    return found


def markdown(record: Mapping[str, Any]) -> str:
    """Formats a record as Markdown."""
    lines = [f"### {record['device']}, {_counted(record['devices'], 'device')}", "", f"    {record['command']}", ""]
    packages = record["packages"]
    lines.append(f"{record['date']}, jax {packages['jax']}, commit {record['commit'] or 'unknown'}.")
    if rates := record["rates"]:
        lines.append(
            f"One device multiplies matrices at {rates['flops'] / 1e12:.3g} TFLOP/s ({record['dtype']}) and copies at "
            f"{rates['bandwidth'] / 1e9:.4g} GB/s."
        )
    if checks := record["checks"]:
        lines += ["", "| check | error | limit | |", "|---|---|---|---|"]
        for check in checks:
            note = ", ".join(filter(None, ("" if check["passed"] else "FAILED", check["note"])))
            lines.append(f"| {check['name']} | {check['error']:.1e} | {check['limit']:g} | {note} |")
    if speeds := record["speeds"]:
        whose = "published" if record["published_rates"] else "measured"
        lines += ["", f"| work | model | time | reached | target | plan's floor ({whose} rates) |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_cells(speed))} |" for speed in speeds]
        for speed in speeds:
            if "phases" in speed:
                parts = ", ".join(f"{name} {seconds / speed['seconds']:.0%}" for name, seconds in speed["phases"].items())
                lines += ["", f"Phases of {speed['name']}, {speed['size']}: {parts}."]
    left = [part for part in record["parts"] if part["state"] == "left out"]
    if left:
        named = ", ".join(f"{part['name']} ({part['expected_minutes']:g} min)" for part in left)
        lines += ["", f"Left out for lack of time: {named}."]
    lines += [text for problem in record["problems"] for text in ("", f"FAILED: {problem}.")]
    return "\n".join(lines) + "\n"


def _cells(speed: Mapping[str, Any]) -> list[str]:
    share, target = speed.get("share"), speed["target"]
    aim = "" if target is None else f"{'under ' if 'phases' in speed else ''}{target:.0%}"
    if "met" in speed:
        aim += " met" if speed["met"] else " MISSED"
    return [
        speed["name"],
        speed["size"],
        duration(speed["seconds"]),
        "" if share is None else f"{share:.0%} of the {speed['of']}",
        aim,
        f"{duration(speed['plan_seconds'])}, {speed['plan_share']:.0%} of the time" if "plan_seconds" in speed else "",
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")
