"""The quickstart: trains a tiny model to look twice, measures what that is worth, and writes a report.

Examples:
  python -m vitar_jax.quickstart --workdir=runs/quickstart
  python -m vitar_jax.quickstart --workdir=runs/quickstart_1 --config.seed=1

Leaves results.json, results.png, curves.png, episode.png and report/index.html in WORKDIR. Run again, it goes on where it
stopped, or says that all is done.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from data_prep.phantom import samples as phantom
from data_prep.phantom.probe import probe_accuracy
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.regions import Box, centre
from vitar_jax.episodes.trajectory import read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.controls import put_look, random_box, true_boxes
from vitar_jax.evaluation.figures import curves_figure, episode_figure, results_figure
from vitar_jax.evaluation.predict import predict
from vitar_jax.evaluation.report import ReportSection, write_report
from vitar_jax.evaluation.results import write_scores
from vitar_jax.evaluation.rules import find_rules
from vitar_jax.evaluation.summary import summary_rows
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import log_to, open_workdir
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.crash_safe import atomic_replace, read_json_lines

MEASURES = ("iou", "centre_error_px", "tight_box_share")
LABELS = {
    "probe": "probe of the\nfirst view",
    "one_look": "one look",
    "random_box": "two looks,\nrandom box",
    "two_looks_sft": "two looks,\nafter SFT",
    "two_looks_grpo": "two looks,\nafter GRPO",
    "oracle_box": "two looks,\ngold box",
}
Scores = dict[str, Any]  # what scores.json holds


def spot(box: Box) -> str:
    """What the model thinks before it zooms a box, in the words it was taught."""
    return f"spot {phantom.region_words(*centre(box))} zoom close"


def measure(run: Run) -> dict[str, Scores]:
    """All evaluations on the held-out phantoms, greedy; each resumes by itself."""
    rewards = run.recipe.rewards("grpo")
    source = load_source(run.recipe.evaluation)
    count = run.recipe.held_out(source)

    def play(stage: str, name: str, prepare: Callable[[Episode], None] = lambda episode: None) -> Scores:
        player = run.player(run.model_dir(stage), run.recipe.all_protocols[run.recipe.stages[stage].protocol])
        directory = run.workdir / "evaluation" / name
        predict(player, source, directory, count=count, title=name, reward=lambda t: rewards(t)[0], prepare=prepare)
        return write_scores(directory, find_rules(["exact"]))

    return {
        "one_look": play("one_look", "one_look"),
        "two_looks_sft": play("sft", "two_looks_sft"),
        "two_looks_grpo": play("grpo", "two_looks_grpo"),
        "random_box": play("grpo", "random_box", put_look(random_box, spot)),
        "oracle_box": play("grpo", "oracle_box", put_look(true_boxes, spot)),
    }


def reported(found: Scores) -> dict[str, Any]:
    """The numbers of an evaluation that results.json has."""
    exact = found["rules"][found["primary"]]
    measured = {name: found["measures"][name]["value"] for name in MEASURES}
    return {"accuracy": exact["score"], "interval": exact["interval"], **measured, "n": exact["n"]}


def what_grpo_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns one sentence each about box size, place and reading."""
    if None in (before["tight_box_share"], after["tight_box_share"], before["centre_error_px"], after["centre_error_px"]):
        return "No valid boxes to compare."
    return (
        f"Size: {before['tight_box_share']:.0%} of boxes were tight before GRPO, {after['tight_box_share']:.0%} after. "
        f"Place: the median box was {before['centre_error_px']:.0f} px off before, {after['centre_error_px']:.0f} px after. "
        f"Answers: {before['accuracy']:.1%} right before, {after['accuracy']:.1%} after."
    )


def results(run: Run, scores: Mapping[str, Scores], probe: float) -> dict[str, Any]:
    """What results.json holds."""
    rows = {name: reported(found) for name, found in scores.items()}
    seconds = {name: json.loads((run.model_dir(name) / "seconds.json").read_text()) for name in run.recipe.schedule}
    return {
        **rows,
        "probe": {"accuracy": probe},
        "grpo_changed": what_grpo_changed(rows["two_looks_sft"], rows["two_looks_grpo"]),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "seed": run.recipe.seed,
    }


def write_pages(run: Run, scores: Mapping[str, Scores], found: Mapping[str, Any]) -> Path:
    """Figures and the report."""
    workdir = run.workdir
    folders = {name: workdir / "evaluation" / name for name in scores}
    results_figure(
        {**{k: found[k] for k in scores}, "probe": found["probe"]},
        workdir / "results.png",
        labels=LABELS,
        controls=("probe", "random_box", "oracle_box"),
        chance=0.25,
    )
    curves_figure(_curves(run), workdir / "curves.png")
    looked = list(read_trajectories(folders["two_looks_grpo"]))
    right = [t for t in looked if exact_match(t.predicted_answer, t.answer)]
    shown = next((t for t in right if len(t.images) > 1), looked[0])
    episode_figure(shown, workdir / "episode.png", right=shown in right)
    return write_report(
        workdir / "report",
        [ReportSection(name, read_trajectories(folder)) for name, folder in folders.items()],
        title="The quickstart: does looking twice pay?",
        summary={row: cells for name, one in scores.items() for row, cells in summary_rows(name, one).items()},
        figures=[workdir / "results.png", workdir / "curves.png"],
        pieces=run.processor.chat.pieces,
        images=run.images,
    )


def _curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Training curves of all stages, by stage and name."""
    wanted = ("actor/loss", "reward/mean", "rollout/action_success", "probe/rollout/action_success", "probe/reward/accuracy")
    curves: dict[str, list[tuple[int, float]]] = {}
    for stage in run.recipe.schedule:
        for row in read_json_lines(run.workdir / stage / "metrics.jsonl", dict):
            for key in wanted:
                if key in row:
                    curves.setdefault(f"{stage}: {key}", []).append((row["step"], row[key]))
    return curves


def main() -> None:
    if jax.process_count() > 1:
        raise ConfigError("the quickstart is for one process; vitar_jax.train and vitar_jax.evaluate run on several")
    workdir = Path(flags.FLAGS.workdir)
    recipe = Recipe.from_config(flags.FLAGS.config)
    if missing := {"warmup", "sft", "grpo", "one_look"} - set(recipe.schedule):
        raise ConfigError(f"config.schedule: the quickstart needs the stages {', '.join(sorted(missing))} too")
    recipe.open_sources()
    open_workdir(flags.FLAGS.config, workdir)
    path = workdir / "results.json"
    page = workdir / "report" / "index.html"
    if path.exists() and page.exists():
        print(f"All is done. Results: {path}; report: {page}")
        return
    log_to(workdir)
    run = Run(recipe, workdir, images=True)  # phantoms are nobody's
    run.train()
    scores = measure(run)
    probe = probe_accuracy(seed=recipe.seed, cache_dir=phantom.CACHE)
    found = results(run, scores, probe)
    page = write_pages(run, scores, found)
    with atomic_replace(path) as partial:  # as it says that all is done
        partial.write_text(json.dumps(found, indent=2) + "\n")
    for name, values in found.items():
        if isinstance(values, dict) and "accuracy" in values:
            print(f"{name:16s} {values['accuracy']:.1%}")
    print(found["grpo_changed"])
    print(f"Results: {path}; report: {page}")


def define_flags() -> None:
    config_flag.define(Recipe, "Recipe file (default: configs/quickstart.py).", default="configs/quickstart.py")
    flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, preemptible=True)
