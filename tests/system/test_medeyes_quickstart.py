"""MedEyes' shortened proofs run from weights that know nothing to their conclusions, and a second start does only the rest."""

import json

import pytest

from data_prep.phantom.gazes import searches
from data_prep.phantom.search import source
from tests.kit.processes import ROOT
from vitar_jax import quickstart
from vitar_jax.experiment.trainer import Run
from vitar_jax.runtime.crash_safe import read_json_lines

TWO_STREAMS = ("published", "mixed", "poor")
ARMS = ("grpo", "dialogues", *TWO_STREAMS)


@pytest.mark.slow
def test_the_proof_runs_from_start_to_end(main, capsys, tmp_path) -> None:
    arguments = f"--config={ROOT}/configs/medeyes_quickstart_smoke.py", f"--workdir={tmp_path}"
    assert main(quickstart, *arguments) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["rows"]) == ["one_gaze", *ARMS] and {row["n"] for row in found["rows"].values()} == {8}
    assert found["conclusion"] in capsys.readouterr().out and "None has reached 85%" in found["conclusion"]

    metrics = {arm: list(read_json_lines(tmp_path / arm / "metrics.jsonl", dict)) for arm in ARMS}
    assert {len(lines) for lines in metrics.values()} == {2}  # as many updates each
    for arm in TWO_STREAMS:
        for line in metrics[arm]:
            # The expert's searches obey the grammar from the first step on, and random weights do not expect them.
            assert line["expert/reward/grammar"] == pytest.approx(0.2) and line["expert/missing"] == 0
            assert 0 < line["expert/probability"] < 0.05 and "rollout/gazes" in line and "actor/entropy" in line
    # From weights that do not know the format, GRPO alone has no gradient. The supervised term has one.
    assert all(line["actor/grad_norm"] == 0 for line in metrics["grpo"])
    assert all(line["actor/grad_norm"] > 0.1 for arm in ("dialogues", "mixed", "poor") for line in metrics[arm])

    samples = source("train", seed=0)
    kept = [t for t in read_json_lines(tmp_path / "mixed" / "trajectories.jsonl", dict) if t["stream"] == "expert"]
    for record in kept:  # of a recipe's function
        trace = searches(samples[int(record["sample_id"].rpartition("-")[2])])[record["metadata"]["search"]]
        assert record["metadata"]["confidences"] == [step.after for step in trace.looks]
        assert len(record["turns"]) == len(trace.looks) + 1 and record["predicted_answer"] == trace.answer
    assert kept

    assert main(quickstart, *arguments) == 0
    assert "All is done" in capsys.readouterr().out


@pytest.mark.slow
def test_the_proof_from_a_cold_start_says_which_arm_has_started(main, capsys, tmp_path) -> None:
    assert main(quickstart, f"--config={ROOT}/configs/medeyes_cold_start_smoke.py", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["rows"]) == ["grpo", "published", "mixed", "dialogues"]
    said = found["conclusion"].splitlines()
    assert len(said) == 4 and found["conclusion"] in capsys.readouterr().out
    for name, line in zip(found["rows"], said, strict=True):  # two steps start nothing
        assert line.startswith(f"{name}: ") and "not started, at most 0% of a probe in the format, entropy" in line
        last = [*read_json_lines(tmp_path / name / "metrics.jsonl", dict)][-1]
        assert last["probe/reward/grammar"] == 0 and (last["actor/grad_norm"] == 0) == (name == "grpo")


@pytest.mark.slow
def test_ablations_go_on_where_they_were_stopped(main, monkeypatch, tmp_path) -> None:
    """The recipe is named as `launch/medeyes_ablations.sh` and a user's arguments name it: the last one counts."""
    recipes = [f"--config={ROOT}/configs/medeyes_ablations{name}.py" for name in ("", "_smoke")]
    train, trained = Run._train_stage, []

    def stopped(run, name, stage, preemption) -> None:
        if name == "replay_newest" and not trained[3:]:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append(name)
        train(run, name, stage, preemption)

    monkeypatch.setattr(Run, "_train_stage", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(quickstart, *recipes, "--workdir=elsewhere", f"--workdir={tmp_path}")
    assert not (tmp_path / "ablations.md").exists()
    assert main(quickstart, *recipes, "--workdir=elsewhere", f"--workdir={tmp_path}") == 0
    assert trained == ["warmup", "one_gaze", "gazes_2", "stopped", "replay_newest"]

    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert list(rows) == ["one_gaze", "gazes_2", "replay_newest"]
    lines = (tmp_path / "ablations.md").read_text().splitlines()
    for name in ("gazes_2", "replay_newest"):
        low, high = (f"{100 * end:.1f}" for end in rows[name]["interval"])
        shown = f"| {name.replace('_', ' ')} | {100 * rows[name]['accuracy']:.1f} % ({low} to {high}) | "
        assert any(line.startswith(shown) and line.endswith(" | 1 | not known |") for line in lines)
