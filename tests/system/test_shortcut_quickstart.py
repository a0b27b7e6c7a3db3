"""The shortened proof with a shortcut runs to its conclusion, and the arms differ in their counterfactual members alone."""

import json

import pytest

from tests.kit.processes import ROOT
from vitar_jax import quickstart
from vitar_jax.runtime.crash_safe import read_json_lines


@pytest.mark.slow
def test_the_proof_runs_from_start_to_end(main, capsys, tmp_path) -> None:
    arguments = f"--config={ROOT}/configs/quickstart_shortcut_smoke.py", f"--workdir={tmp_path}"
    assert main(quickstart, *arguments) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    arms = ("sft", "grpo", "counterfactual")
    assert tuple(found["rows"]) == (*arms, *(f"{arm}_blank" for arm in arms))
    assert {row["n"] for row in found["rows"].values()} == {8}
    assert found["conclusion"] in capsys.readouterr().out and "alarm of reliance was not raised" in found["conclusion"]
    logged = {arm: [*read_json_lines(tmp_path / arm / "metrics.jsonl", dict)] for arm in arms[1:]}
    extra = {key for key in logged["counterfactual"][0].keys() ^ logged["grpo"][0].keys() if not key.startswith("probe/reward")}
    assert extra and all(key.startswith("counterfactual/") for key in extra)
    assert all("probe/reliance/region_erased" in line for lines in logged.values() for line in lines)
    kept = [*read_json_lines(tmp_path / "counterfactual" / "trajectories.jsonl", dict)]
    streams = {stream: sum(record["stream"] == stream for record in kept) for stream in ("on_policy", "counterfactual")}
    assert streams == {"on_policy": 2 * 2 * 2, "counterfactual": 2 * 2 * 4}
    assert {r["metadata"].get("intervention") for r in kept if r["stream"] == "counterfactual"} == {"region_erased"}
