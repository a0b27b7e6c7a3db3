"""The quickstart command plays, draws and concludes what its recipe's proof says."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.kit.processes import ROOT
from vitar_jax import quickstart
from vitar_jax.evaluation.proof import Proof, ProofRow
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.sft import SFT

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
        duration="a moment",
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
    printed, progress = capsys.readouterr()
    first, *_, last = printed.splitlines()
    assert first == "Words" and last == f"Report:  {workdir / 'report' / 'index.html'} (open it in a browser)"
    assert "\nwords, after warm-up  " in printed and "\na guess                25.0 %\n" in printed
    assert f"\n  takes    a moment\n  report   {workdir / 'report' / 'index.html'}, when all is done\n" in printed
    said = r"(warmup: 1 of 1 step|played: 3 of 3 episode)s, .* left, .*"
    assert [line for line in progress.splitlines() if not re.fullmatch(said, line)] == []
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


def test_curves_have_words_and_stages_share_the_panels_of_metrics(tmp_path) -> None:
    """The loss of GRPO is left out, and reliance shares an axis with the probes' reward."""
    rows = [{"step": n, "actor/loss": 2.0, "probe/reward/mean": n / 4, "probe/reliance/region_erased": n / 2} for n in (1, 2)]
    stages = {name: SimpleNamespace(probe_interventions=(), objective=SFT(name="sft")) for name in ("warm_up", "sft")}
    stages["grpo"] = SimpleNamespace(probe_interventions=("region_erased",), objective=GRPO(name="grpo"))
    for stage in stages:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run: Any = SimpleNamespace(workdir=tmp_path, recipe=SimpleNamespace(schedule=tuple(stages), stages=stages))
    played = {name: ProofRow(f"two looks, after {name.upper()}", name) for name in ("sft", "grpo")}
    blank = ProofRow("blank", "grpo", control="blank", is_control=True)
    curves = ("actor/loss", "probe/reward/mean")
    proof = Proof("Words", played | {"blank": blank}, ("sft", "grpo", "blank"), "grpo", curves=curves)
    loss, rising = [(1, 2.0), (2, 2.0)], [(1, 0.25), (2, 0.5)]
    assert quickstart._panels(run, proof) == {
        "loss, SFT": {"warm up": loss, "two looks, after SFT": loss},
        "reward, held out": {"warm up": rising, "two looks, after SFT": rising},
        "held out, two looks, after GRPO": {"reward": rising, "reliance, region erased": [(1, 0.5), (2, 1.0)]},
    }


def test_a_recipe_without_a_proof_is_refused(main, capsys, tmp_path) -> None:
    assert main(quickstart, f"--config={ROOT}/tests/kit/micro.py", f"--workdir={tmp_path}") == 2
    assert "config.proof: must be set" in capsys.readouterr().err
