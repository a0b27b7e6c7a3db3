"""Trains the stages of a recipe, plays the rows of its `proof`, and writes results, figures and a report.

Examples:
  python -m vitar_jax.quickstart --workdir=runs/quickstart
  python -m vitar_jax.quickstart --workdir=runs/quickstart_1 --config.seed=1

The default recipe teaches a tiny model to look twice and measures the benefit. Another recipe with a `proof` measures
something else. The command writes results.json, results.png, curves.png, episode.png and report/index.html to WORKDIR, and
the page that the `proof` names. Rerunning it resumes the run, or prints that all is done.
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
from vitar_jax.learning.metrics import metric_title
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.crash_safe import atomic_replace, read_json, read_json_lines
from vitar_jax.runtime.help import subject

Scores = dict[str, Any]  # the contents of scores.json
REWARD = "probe/reward/mean"
RESULTS, PAGE = Path("results.json"), Path("report", "index.html")


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


def opening(recipe: Recipe, proof: Proof, page: Path) -> str:
    """Returns what to print at the start: what the command does, how long it takes, and where the report will be."""
    played = [row.label for row in map(proof.rows.__getitem__, proof.order) if row.stage]
    lines = [
        proof.title,
        f"  trains   {len(recipe.schedule)} stages: {', '.join(recipe.schedule)}",
        f"  plays    held-out samples under {len(played)} conditions: {'; '.join(played)}",
        *([f"  takes    {proof.duration}"] if proof.duration else []),
        f"  report   {page}, when all is done",
        "You can stop the command at any time. Running it again resumes.",
    ]
    return "\n".join(lines)


def table(proof: Proof, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the accuracy and the measures of each row, to print."""
    measures = {measure.title or measure.name.rpartition(":")[2]: measure for measure in find_measures(proof.measures)}
    width = max(len(row.label) for row in proof.rows.values())
    lines = []
    for name in proof.order:
        row = rows[name]
        interval = "({:.1f} to {:.1f})".format(*(100 * bound for bound in row["interval"])) if row.get("interval") else ""
        cells = [f"{title} {one.text(row[one.name])}" for title, one in measures.items() if row.get(one.name) is not None]
        share = f"{100 * row['accuracy']:5.1f} % {interval:15s}"
        lines.append("  ".join([f"{proof.rows[name].label:{width}s}", share, *cells]).rstrip())
    return "\n".join(lines)


def ending(proof: Proof, found: Mapping[str, Any], workdir: Path) -> str:
    """Returns what to print at the end: the contents of results.json, and where the report is."""
    lines = [f"right answers, with intervals of 95 %, rule {proof.rule}:", table(proof, found["rows"])]
    for compared in found.get("comparisons", ()):
        one, other = (proof.rows[compared[side]].label for side in ("first", "second"))
        lines.append(f"{one}; {other}; their difference (95 % interval), {compared['samples']} samples:")
        lines.append(comparison_lines(compared))
    if found["conclusion"]:
        lines.append(found["conclusion"])
    return "\n".join((*lines, f"Results: {workdir / RESULTS}", f"Report:  {workdir / PAGE} (open it in a browser)"))


def write_pages(run: Run, proof: Proof, scores: Mapping[str, Scores], rows: Mapping[str, Any]) -> None:
    """Writes the figures and the report."""
    workdir = run.workdir
    results_figure(
        rows,
        workdir / "results.png",
        labels={name: row.label for name, row in proof.rows.items()},
        controls=[name for name, row in proof.rows.items() if row.is_control],
        chance=proof.chance,
    )
    curves_figure(_panels(run, proof), workdir / "curves.png")
    _, marks = read_marks(_folder(run, proof.episode))
    played = list(read_trajectories(_folder(run, proof.episode)))
    shown = next((t for t in played if marks[t.sample_id] == 1 and len(t.images) > 1), played[0])
    episode_figure(shown, workdir / "episode.png", right=marks[shown.sample_id] == 1)
    write_report(
        workdir / PAGE.parent,
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


def _panels(run: Run, proof: Proof) -> dict[str, dict[str, Points]]:
    """Returns the panels of a figure: one per metric, with a curve per stage. SFT and GRPO share no panel of `actor/*`.

    Reliance shares the panel of its stage with the probes' reward, because its fall matters while the reward rises. The loss of
    a stage that plays is left out: it stays near 0, whatever the policy learns.
    """
    panels: dict[str, dict[str, Points]] = {}
    labels = {row.stage: row.label for row in reversed(list(proof.rows.values())) if row.stage and not row.is_control}
    for stage, found in _curves(run, proof).items():
        label, objective = labels.get(stage, stage.replace("_", " ")), run.recipe.stages[stage].objective
        relied = any(key.startswith(RELIANCE) for key in found)
        for key, points in found.items():
            if key == "actor/loss" and objective.plays:
                continue
            if key.startswith(RELIANCE):
                intervention = key.removeprefix(RELIANCE).replace("_", " ")
                panels.setdefault(f"held out, {label}", {})[f"reliance, {intervention}"] = points
            elif relied and key == REWARD:
                panels.setdefault(f"held out, {label}", {})["reward"] = points
            else:
                kind = f", {objective.name.upper()}" if key.startswith("actor/") else ""
                panels.setdefault(metric_title(key) + kind, {})[label] = points
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
    if (workdir / RESULTS).exists() and (workdir / PAGE).exists():
        found = read_json(workdir / RESULTS)
        if tuple(found["rows"]) == proof.order:
            print(f"All is done.\n{ending(proof, found, workdir)}")
            return
    print(opening(recipe, proof, workdir / PAGE), flush=True)
    log_to(workdir)
    run = Run(recipe, workdir, images=proof.images)
    run.train()
    scores = {name: play(run, proof, name, proof.rows[name]) for name in proof.order if proof.rows[name].stage}
    found = results(run, proof, scores)
    write_pages(run, proof, scores, found["rows"])
    if proof.conclusion_file:
        with atomic_replace(workdir / proof.conclusion_file) as partial:
            partial.write_text(found["conclusion"])
    with atomic_replace(workdir / RESULTS) as partial:  # last, because it marks the run as done
        partial.write_text(json.dumps(found, indent=2) + "\n")
    print(ending(proof, found, workdir))


def define_flags() -> None:
    with subject("The run"):
        config_flag.define(Recipe, "Recipe file (default: configs/quickstart.py).", default="configs/quickstart.py")
        flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, preemptible=True)
