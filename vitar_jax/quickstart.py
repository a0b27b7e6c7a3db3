"""Trains the stages of a recipe, plays the rows of its `proof`, and writes results, figures and a report.

Examples:
  python -m vitar_jax.quickstart --workdir=runs/quickstart
  python -m vitar_jax.quickstart --workdir=runs/quickstart_1 --config.seed=1

The default recipe teaches a tiny model to look twice and measures the benefit. Another recipe with a `proof` measures
something else. The command writes results.json, results.png, curves.png, episode.png and report/index.html to WORKDIR.
Rerunning it resumes the run, or prints that all is done.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from vitar_jax.data.interventions import label
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.protocols import find_protocol
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.comparison import compare, comparison_lines
from vitar_jax.evaluation.figures import Points, curves_figure, episode_figure, results_figure
from vitar_jax.evaluation.measures import find_measures
from vitar_jax.evaluation.predict import predict
from vitar_jax.evaluation.proof import BASELINES, Proof, ProofRow
from vitar_jax.evaluation.report import ReportSection, write_report
from vitar_jax.evaluation.results import read_marks, write_scores
from vitar_jax.evaluation.rules import find_rules
from vitar_jax.evaluation.summary import summary_rows
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import log_to, open_workdir
from vitar_jax.learning.alarms import RELIANCE
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.crash_safe import atomic_replace, read_json_lines
from vitar_jax.runtime.help import subject

Scores = dict[str, Any]  # the contents of scores.json
REWARD = "probe/reward/mean"


def play(run: Run, proof: Proof, name: str, row: ProofRow) -> Scores:
    """Plays one row on the held-out samples, greedily, and scores it. A second call keeps finished samples."""
    recipe, variant = run.recipe, row.variant()
    source = load_source(recipe.evaluation)
    count = recipe.held_out(source)
    rewards = recipe.rewards(proof.rewards or row.stage)
    protocol = variant.play_under(find_protocol(row.protocol or recipe.stages[row.stage].protocol, recipe.all_protocols))
    directory = _folder(run, name)
    change, settings = variant.intervene(source, count, _folder(run, row.of))
    predict(
        run.player(run.model_dir(row.stage), protocol),
        source,
        directory,
        count=count,
        title=name,
        reward=lambda trajectory: rewards(trajectory)[0],
        change=change,
        skip_missing=variant.skip_missing,
        prepare=variant.prepare,
        control=settings,
    )
    return write_scores(directory, find_rules([proof.rule, *proof.rules]), measures=find_measures(proof.measures))


def results(run: Run, proof: Proof, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Returns the contents of results.json: the rows, the conclusion, the seconds of each stage, the seed, and comparisons."""
    rows: dict[str, dict[str, Any]] = {}
    for name in proof.order:
        row = proof.rows[name]
        if row.baseline:
            rows[name] = {"accuracy": BASELINES.find(row.baseline)(run.recipe.seed)}
            continue
        scored, measured = scores[name]["rules"][scores[name]["primary"]], scores[name]["measures"]
        rows[name] = {"accuracy": scored["score"], "interval": scored["interval"], "n": scored["n"]}
        rows[name] |= {measure: measured[measure]["value"] for measure in proof.measures}
    curves = _curves(run, proof)
    drawn = {name: row | {"curves": curves.get(proof.rows[name].stage, {})} for name, row in rows.items()}
    seconds = {name: sum(read_json_lines(run.model_dir(name) / "seconds.json", float)) for name in run.recipe.schedule}
    found = {
        "rows": rows,
        "conclusion": proof.conclude(drawn),
        "seconds": {**seconds, "total": sum(seconds.values())},
        "seed": run.recipe.seed,
    }
    if proof.compared:
        pairs = [(compare(_folder(run, one), _folder(run, other)), one, other) for one, other in proof.compared]
        found["comparisons"] = [compared | {"first": one, "second": other} for compared, one, other in pairs]
    return found


def table(proof: Proof, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the accuracy and the measures of each row, to print."""
    measures = {measure.title or measure.name.rpartition(":")[2]: measure for measure in find_measures(proof.measures)}
    lines = []
    for name in proof.order:
        row = rows[name]
        cells = [f"{title} {one.text(row[one.name])}" for title, one in measures.items() if row.get(one.name) is not None]
        lines.append("  ".join([f"{proof.rows[name].label:40s} {row['accuracy']:6.1%}", *cells]))
    return "\n".join(lines)


def write_pages(run: Run, proof: Proof, scores: Mapping[str, Scores], rows: Mapping[str, Any]) -> Path:
    """Writes the figures and the report; returns the report's page."""
    workdir = run.workdir
    results_figure(
        rows,
        workdir / "results.png",
        labels={name: row.label for name, row in proof.rows.items()},
        controls=[name for name, row in proof.rows.items() if row.is_control],
        chance=proof.chance,
    )
    curves_figure(_panels(_curves(run, proof)), workdir / "curves.png")
    _, marks = read_marks(_folder(run, proof.episode))
    played = list(read_trajectories(_folder(run, proof.episode)))
    shown = next((t for t in played if marks[t.sample_id] == 1 and len(t.images) > 1), played[0])
    episode_figure(shown, workdir / "episode.png", right=marks[shown.sample_id] == 1)
    return write_report(
        workdir / "report",
        [_section(proof.rows[name].label, _folder(run, name)) for name in scores],
        title=proof.title,
        summary={row: cells for name in scores for row, cells in summary_rows(proof.rows[name].label, scores[name]).items()},
        figures=[workdir / "results.png", workdir / "curves.png"],
        pieces=run.processor.chat.pieces,
        images=run.images,
    )


def _section(label: str, folder: Path) -> ReportSection:
    return ReportSection(label, read_trajectories(folder), *read_marks(folder))


def _folder(run: Run, row: str) -> Path:
    return run.workdir / "evaluation" / row


def _curves(run: Run, proof: Proof) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Returns the training curves of all stages, by stage and metric: those of the proof, and those of probes."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for stage in run.recipe.schedule:
        relied = [f"{RELIANCE}{label(name)}" for name in run.recipe.stages[stage].probe_interventions]
        rewards = [REWARD] if relied else []
        keys = dict.fromkeys([*proof.curves, *rewards, *relied])
        for line in read_json_lines(run.workdir / stage / "metrics.jsonl", dict):
            for key in keys:
                if key in line:
                    curves.setdefault(stage, {}).setdefault(key, []).append((line["step"], line[key]))
    return curves


def _panels(curves: Mapping[str, Mapping[str, Points]]) -> dict[str, Points | dict[str, Points]]:
    """Returns the panels of a figure: one per curve, where reliance shares the axis of the probes' reward."""
    panels: dict[str, Points | dict[str, Points]] = {}
    for stage, found in curves.items():
        relied = {key: points for key, points in found.items() if key.startswith(RELIANCE)}
        shared = {key: points for key, points in found.items() if key == REWARD} | relied if relied else {}
        panels |= {f"{stage}: {key}": points for key, points in found.items() if key not in shared}
        if shared:
            panels[f"{stage}: probes"] = {key.removeprefix("probe/"): points for key, points in shared.items()}
    return panels


def main() -> None:
    if jax.process_count() > 1:
        raise ConfigError("the quickstart runs in one process; vitar_jax.train and vitar_jax.evaluate run in several")
    workdir = Path(flags.FLAGS.workdir)
    recipe = Recipe.from_config(flags.FLAGS.config)
    proof = recipe.proof
    if proof is None:
        raise ConfigError("config.proof: must be set; it says what the quickstart plays, draws and concludes")
    proof.check_stages(recipe.schedule)
    recipe.open_sources()
    open_workdir(flags.FLAGS.config, workdir)
    path = workdir / "results.json"
    page = workdir / "report" / "index.html"
    if path.exists() and page.exists():
        print(f"All is done. Results: {path}; report: {page}")
        return
    log_to(workdir)
    run = Run(recipe, workdir, images=proof.images)
    run.train()
    scores = {name: play(run, proof, name, proof.rows[name]) for name in proof.order if proof.rows[name].stage}
    found = results(run, proof, scores)
    page = write_pages(run, proof, scores, found["rows"])
    with atomic_replace(path) as partial:  # last, because it marks the run as done
        partial.write_text(json.dumps(found, indent=2) + "\n")
    print(table(proof, found["rows"]))
    for compared in found.get("comparisons", ()):
        one, other = (proof.rows[compared[side]].label for side in ("first", "second"))
        print(f"{one}; {other}; their difference (95 % interval), {compared['samples']} samples:\n{comparison_lines(compared)}")
    if found["conclusion"]:
        print(found["conclusion"])
    print(f"Results: {path}; report: {page}")


def define_flags() -> None:
    with subject("The run"):
        config_flag.define(Recipe, "Recipe file (default: configs/quickstart.py).", default="configs/quickstart.py")
        flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, preemptible=True)
