"""The shortened proof with masks runs from weights that know nothing to a conclusion, and `[SEG]` has masks in its records."""

import json
import math

import pytest

from tests.kit.processes import ROOT
from tests.kit.recipes import load_config
from vitar_jax import quickstart
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
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
    for row in (first, second):  # a random model gives each pixel a probability near one half
        assert abs(row["actor/masks/cross_entropy"] - math.log(2)) < 0.2 and 0 <= row["actor/masks/iou"] < 0.5
    (played, _) = read_json_lines(tmp_path / "grpo" / "metrics.jsonl", dict)
    assert played["reward/format"] == played["reward/answer"] == 0 and "actor/masks/dice" in played
    for record in read_trajectories(tmp_path / "evaluation" / "grpo"):
        assert len(record.objects) == 2 and sum(one.in_answer for one in record.objects) == 1


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
def test_the_proof_of_two_rounds_runs_from_start_to_end(main, capsys, tmp_path) -> None:
    arguments = f"--config={ROOT}/configs/quickstart_outline_smoke.py", f"--workdir={tmp_path}"
    assert main(quickstart, *arguments) == 0
    found, said = json.loads((tmp_path / "results.json").read_text()), capsys.readouterr().out
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
