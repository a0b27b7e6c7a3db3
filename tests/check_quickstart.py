"""Checks the results of a shortened quickstart: its mechanics, not its accuracy.

Usage: python -m tests.check_quickstart WORKDIR LAST_START_LOG
"""

import json
import sys
from pathlib import Path

ENTRIES = ("one_look", "two_looks_sft", "two_looks_grpo", "random_box", "oracle_box")


def check(workdir: Path, last_start: str) -> None:
    found = json.loads((workdir / "results.json").read_text())
    results = found["rows"]
    for name in ENTRIES:
        entry = results[name]
        low, high = entry["interval"]
        assert 0 <= low <= entry["accuracy"] <= high <= 1, (name, entry)
        assert entry["n"] == 64, (name, entry)
    for name in ("random_box", "oracle_box"):  # their boxes do not come from the model
        assert results[name]["tight_box_share"] == 1.0, results[name]
    assert results["oracle_box"]["centre_error_px"] < 4 < results["random_box"]["centre_error_px"], results
    assert results["oracle_box"]["iou"] > 0.7 > results["random_box"]["iou"], results
    assert 0 <= results["probe"]["accuracy"] <= 0.3, results["probe"]
    assert set(found["seconds"]) == {"warmup", "sft", "grpo", "one_look", "total"}
    assert found["seed"] == 0 and found["conclusion"]

    sft = [json.loads(line) for line in (workdir / "sft" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["actor/loss"] for row in sft]
    assert losses[-1] < losses[0] / 4, losses
    acted = [row["probe/rollout/action_success"] for row in sft if "probe/rollout/action_success" in row]
    assert acted[-1] > acted[0], acted
    grpo = [json.loads(line) for line in (workdir / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["reward/mean"] <= 1.4 and row["actor/grad_norm"] > 0 for row in grpo), grpo
    assert [row["step"] for row in grpo] == sorted({row["step"] for row in grpo}), "a resumed step was logged twice"

    for name in ("results.png", "curves.png", "episode.png", "report/index.html"):
        assert (workdir / name).stat().st_size > 0, name
    episodes = {
        json.loads(line)["sample_id"]
        for line in (workdir / "evaluation" / "two_looks_grpo" / "trajectories.jsonl").read_text().splitlines()
    }
    assert len(episodes) == 64
    assert "All is done" in last_start and "two looks, after GRPO" in last_start, last_start
    assert last_start.rstrip().endswith(f"{workdir / 'report' / 'index.html'} (open it in a browser)"), last_start
    print("the shortened quickstart holds")


if __name__ == "__main__":
    check(Path(sys.argv[1]), Path(sys.argv[2]).read_text())
