"""The shortened proof with masks runs from weights that know nothing to a conclusion, and `[SEG]` has masks in its records."""

import json

import pytest

from tests.kit.processes import ROOT
from vitar_jax import quickstart
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.runtime.crash_safe import read_json_lines

ROWS = ("sft", "grpo", "wrong_image")


@pytest.mark.slow
def test_the_proof_runs_from_start_to_end(main, capsys, tmp_path) -> None:
    arguments = f"--config={ROOT}/configs/quickstart_masks_smoke.py", f"--workdir={tmp_path}"
    assert main(quickstart, *arguments) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert tuple(found["rows"]) == ROWS and {row["n"] for row in found["rows"].values()} == {8}
    assert found["conclusion"] in capsys.readouterr().out and "After GRPO: R-LQ" in found["conclusion"]
    for row in found["rows"].values():
        assert row["r_lq"] is not None and 0 <= row["r_lq"] <= 1 and 0 <= row["a_miou"] <= 1
    (first, second) = read_json_lines(tmp_path / "sft" / "metrics.jsonl", dict)
    assert second["actor/masks/cross_entropy"] < first["actor/masks/cross_entropy"] and 0 <= first["actor/masks/iou"] < 0.5
    (played, _) = read_json_lines(tmp_path / "grpo" / "metrics.jsonl", dict)
    assert played["reward/format"] == played["reward/answer"] == 0 and "actor/masks/dice" in played
    for record in read_trajectories(tmp_path / "evaluation" / "grpo"):
        assert len(record.objects) == 2 and sum(one.in_answer for one in record.objects) == 1
