"""The shortened proof with windows runs from weights that know nothing to a conclusion."""

import json

import pytest

from tests.kit.processes import ROOT
from vitar_jax import quickstart
from vitar_jax.runtime.crash_safe import read_json_lines


@pytest.mark.slow
def test_the_proof_runs_from_start_to_end(main, capsys, tmp_path) -> None:
    assert main(quickstart, f"--config={ROOT}/configs/quickstart_window_smoke.py", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert tuple(found["rows"]) == ("sft", "grpo", "blank") and {row["n"] for row in found["rows"].values()} == {8}
    assert found["conclusion"] in capsys.readouterr().out and "One window of four" in found["conclusion"]
    (first, second) = read_json_lines(tmp_path / "sft" / "metrics.jsonl", dict)
    assert second["actor/loss"] < first["actor/loss"]
    (played, _) = read_json_lines(tmp_path / "grpo" / "metrics.jsonl", dict)
    assert {"reward/answer", "reward/calls", "rollout/error/no_values"} < played.keys()
