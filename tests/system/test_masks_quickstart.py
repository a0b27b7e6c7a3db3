"""The shortened proof with masks runs from weights that know nothing to a conclusion, and `[SEG]` has masks in its records."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.processes import run_module, simulated
from tests.kit.recipes import load_config
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.runtime.crash_safe import read_json_lines


def prove(name: str, workdir: Path) -> tuple[dict[str, Any], str]:
    """Runs a proof of `configs` and returns its results and its output.

    It has one device, as its user's CPU. Training on several devices is tested in test_masks_training.py.
    """
    arguments = (f"--config=configs/{name}.py", f"--workdir={workdir}")
    done = run_module("vitar_jax.quickstart", *arguments, environ=simulated(1), timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((workdir / "results.json").read_text()), done.stdout


def check_first_arm(workdir: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Checks SFT and GRPO of one round, and the rows of their models."""
    for row in rows:
        assert row["r_lq"] is not None and 0 <= row["r_lq"] <= 1 and 0 <= row["a_miou"] <= 1
    (first, second) = read_json_lines(workdir / "sft" / "metrics.jsonl", dict)
    for row in (first, second):  # a random model gives each pixel a probability near one half
        assert abs(row["actor/masks/cross_entropy"] - math.log(2)) < 0.2 and 0 <= row["actor/masks/iou"] < 0.5
    (played, _) = read_json_lines(workdir / "grpo" / "metrics.jsonl", dict)
    assert played["reward/format"] == played["reward/answer"] == 0 and "actor/masks/dice" in played
    for record in read_trajectories(workdir / "evaluation" / "grpo"):
        assert len(record.objects) == 2 and sum(one.in_answer for one in record.objects) == 1


@pytest.mark.slow
@pytest.mark.sweep  # its stages are the first arm of the proof of two rounds, and test_controls shows other images
def test_the_proof_runs_from_start_to_end(tmp_path) -> None:
    found, said = prove("quickstart_masks_smoke", tmp_path)
    assert tuple(found["rows"]) == ("sft", "grpo", "wrong_image") and {row["n"] for row in found["rows"].values()} == {8}
    assert found["conclusion"] in said and "After GRPO: R-LQ" in found["conclusion"]
    check_first_arm(tmp_path, found["rows"].values())


# --- two rounds -------------------------------------------------------------------------------------


def test_two_rounds_are_trained_as_one_is() -> None:
    config, base = load_config("quickstart_outline"), load_config("quickstart_masks")
    config.seed = base.seed = 7
    for name, stage in base.stages.items():
        for source in stage.sources.values():
            source.options.outline = True
        one, two = stage.to_dict(), stage.to_dict() | {"protocol": "outline"}
        if "start" in two:
            two["start"] = f"outline_{two['start']}"
        if stage.objective.name == "sft":
            one |= {"tokens": base.limits.tokens, "row_images": 1}
            two |= {"policy_tokens": 48}
            if "masks" in two["objective"]:
                two["objective"]["masks"]["masks"] = 5
        assert config.stages[name].to_dict() == one and config.stages[f"outline_{name}"].to_dict() == two
    assert config.model == base.model and config.evaluation == base.evaluation


@pytest.mark.slow
def test_demonstrations_of_two_rounds_fit(tmp_path) -> None:
    recipe = Recipe.from_config(load_config("quickstart_outline"))
    run = Run(recipe, tmp_path)
    stage = recipe.stages["outline_sft"]
    masks = stage.objective.masks
    assert masks is not None
    samples = load_source(stage.sources["findings"])
    for index in range(60):
        episode = demonstrate(samples[index], recipe.all_protocols["outline"], run.processor, recipe.limits)
        assert sum(episode.loss_mask) <= stage.policy_tokens and len(episode.token_ids) < recipe.limits.tokens
        assert sum(len(turn.masks) for turn in episode.turns) == masks.masks


@pytest.mark.slow
def test_the_proof_of_two_rounds_runs_from_start_to_end(tmp_path) -> None:
    found, said = prove("quickstart_outline_smoke", tmp_path)
    check_first_arm(tmp_path, (found["rows"][name] for name in ("sft", "grpo")))
    assert tuple(found["rows"]) == ("sft", "grpo", "outline_sft", "outline_grpo", "unmarked")
    pairs = [(one["first"], one["second"], one["samples"]) for one in found["comparisons"]]
    assert pairs == [("sft", "outline_sft", 8), ("grpo", "outline_grpo", 8), ("unmarked", "outline_grpo", 8)]
    for one in found["comparisons"]:
        assert one["primary"] == "exact/1" and {"exact/1", "vrt/1 R-LQ", "vrt/1 A-mIoU"} <= one["rules"].keys()
        assert one["rules"]["vrt/1 A-mIoU"]["second"] == pytest.approx(found["rows"][one["second"]]["a_miou"])
    assert "one round, after GRPO; two rounds, after GRPO; their difference (95 % interval), 8 samples:\nexact/1 *" in said
    rows = list(read_json_lines(tmp_path / "outline_sft" / "metrics.jsonl", dict))
    assert [abs(row["actor/masks/cross_entropy"] - math.log(2)) < 0.2 for row in rows] == [True, True]
    assert max(len(record.turns) for record in read_trajectories(tmp_path / "evaluation" / "outline_grpo")) == 2
