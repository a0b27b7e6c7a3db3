"""The quickstart command plays, draws and concludes what its recipe's proof says."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.kit.processes import ROOT
from vitar_jax import quickstart

PROOF = """
def guess(seed):
    return 0.25 + seed


def two(trajectory):
    return 2


def conclusion(rows):
    curves = {name: {key: len(curve) for key, curve in row["curves"].items()} for name, row in rows.items()}
    return f"{len(rows)} rows, {rows['played']['n']} samples, curves {curves}"
"""
RECIPE = """
from tests.kit import micro


def get_config():
    config = micro.get_config()
    config.schedule = ("warmup",)
    config.evaluation_samples = 3
    config.stages.warmup.update(probe_every=1, probe_samples=2, probe_interventions=("blank", "erased:67"))
    config.proof = dict(
        title="Words",
        rows=dict(
            played=dict(label="words, after warm-up", stage="warmup", protocol="direct"),
            guessed=dict(label="a guess", baseline="{file}:guess", is_control=True),
        ),
        order=("guessed", "played"),
        episode="played",
        measures=("answered", "{file}:two"),
        conclusion="{file}:conclusion",
    )
    return config
"""


@pytest.mark.slow
def test_a_proof_is_a_recipe(main, capsys, tmp_path) -> None:
    file, recipe, workdir = tmp_path / "mine.py", tmp_path / "recipe.py", tmp_path / "run"
    file.write_text(PROOF)
    recipe.write_text(RECIPE.replace("{file}", str(file)))
    assert main(quickstart, f"--config={recipe}", f"--workdir={workdir}") == 0
    printed = capsys.readouterr().out
    found = json.loads((workdir / "results.json").read_text())
    assert list(found["rows"]) == ["guessed", "played"] and found["rows"]["guessed"] == {"accuracy": 0.25}
    played = found["rows"]["played"]
    assert played["n"] == 3 and 0 <= played["accuracy"] <= 1 and 0 <= played["answered"] <= 1 and played[f"{file}:two"] == 2
    logged = ("actor/loss", "probe/reward/mean", "probe/reliance/blank", "probe/reliance/erased-67")
    curves = {"guessed": {}, "played": dict.fromkeys(logged, 1)}
    assert found["conclusion"] == f"2 rows, 3 samples, curves {curves}" and found["conclusion"] in printed
    assert "a guess" in printed and "words, after warm-up" in (workdir / "report" / "index.html").read_text()
    (row,) = map(json.loads, (workdir / "warmup" / "metrics.jsonl").read_text().splitlines())
    assert {"probe/reliance/blank", "probe/reliance/erased-67/changed", "probe/tool_turns", "timing_s/probe"} < row.keys()
    with Image.open(workdir / "curves.png") as figure:
        assert figure.width == 800  # the loss, and reward and reliance on one axis
    assert all((workdir / name).stat().st_size for name in ("results.png", "curves.png", "episode.png"))


def test_reward_and_reliance_of_probes_share_an_axis(tmp_path) -> None:
    rows = [{"step": n, "actor/loss": 2.0, "probe/reward/mean": n / 4, "probe/reliance/blank": 1 - n / 4} for n in (1, 2)]
    for stage in ("sft", "grpo"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = {"sft": SimpleNamespace(probe_interventions=()), "grpo": SimpleNamespace(probe_interventions=("blank",))}
    run: Any = SimpleNamespace(workdir=tmp_path, recipe=SimpleNamespace(schedule=tuple(stages), stages=stages))
    proof: Any = SimpleNamespace(curves=("actor/loss",))
    loss = [(1, 2.0), (2, 2.0)]
    assert quickstart._panels(quickstart._curves(run, proof)) == {
        "sft: actor/loss": loss,
        "grpo: actor/loss": loss,
        "grpo: probes": {"reward/mean": [(1, 0.25), (2, 0.5)], "reliance/blank": [(1, 0.75), (2, 0.5)]},
    }


def test_a_recipe_without_a_proof_is_refused(main, capsys, tmp_path) -> None:
    assert main(quickstart, f"--config={ROOT}/tests/kit/micro.py", f"--workdir={tmp_path}") == 2
    assert "config.proof: must be set" in capsys.readouterr().err
