"""Evaluates a checkpoint on held-out samples: trajectories as JSONL, scores under named rules, and a report to open from disk.

Examples:
  python -m vitar_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
  python -m vitar_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart --stage=grpo --look=random
  python -m vitar_jax.evaluate --config=configs/vqa_rad_small.py --workdir=runs/vqa \\
      --config.data.source=VQA_RAD_DIR --config.data.processor=QWEN_DIR
  python -m vitar_jax.evaluate --workdir=runs/vqa --name=grpo --phase=score,report --rules=medevalkit-em,llava-med

Three phases leave their results in WORKDIR/evaluation/NAME:

  predict  plays the samples with the stage's model in WORKDIR, or --checkpoint. Run again, also on another number of
           processes, it goes on after the last one that was answered, and tries those again that could not be played.
  score    applies rules to what is there; needs neither checkpoint nor data set nor accelerator.
  report   writes the pages.

`medevalkit-judge` has open answers judged by a language model: --judge names it, --judge_requests writes what it has to be
asked (OpenAI's batch format), --judge_responses takes in what it said. --control and --look tell what of a score is left
without the image, or with a box that the model did not choose; their results have a folder of their own.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from vitar_jax import cli
from vitar_jax.data.sources import Source, load_source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory, file_of, read_trajectories
from vitar_jax.errors import CheckpointError, ConfigError, DataError
from vitar_jax.evaluation.confidence import locate_answer
from vitar_jax.evaluation.controls import LOOKS, blank, look_tool, put_look, wrong_image
from vitar_jax.evaluation.judge import Judgements
from vitar_jax.evaluation.outcomes import noted, read_outcomes
from vitar_jax.evaluation.report import ReportSection, write_report
from vitar_jax.evaluation.results import SCORES, TIMING, table, to_be_judged, write_scores
from vitar_jax.evaluation.rules import RULES, Rule, find_rules
from vitar_jax.inference import play_settings
from vitar_jax.learning.rewards import Rewards
from vitar_jax.models.folder import Folder
from vitar_jax.parallel.distributed import is_main, wait_for_all
from vitar_jax.recipe import Recipe
from vitar_jax.rollout.offline import kinds, play_samples, read_failures
from vitar_jax.rollout.view import RolloutView
from vitar_jax.train import Run
from vitar_jax.workdir import log_to

PHASES = ("predict", "score", "report")
BY_DEFAULT = [name for name, rule in RULES.items() if not rule.judged and not name.endswith("-published")]


def predict(
    run: Run,
    *,
    checkpoint: Path | Folder,
    protocol: str,
    name: str,
    rewards: Rewards,
    change: Callable[[Sample], Sample] = lambda sample: sample,
    prepare: Callable[[Episode], None] = lambda episode: None,
    control: Mapping[str, str] | None = None,
) -> Path:
    """Plays the recipe's held-out samples greedily into WORKDIR/evaluation/NAME, in every process, and returns that folder.

    Args:
      change: what happens to a sample, and `prepare` to an episode, before it is played; a control takes the image away
        here, or puts a turn into the model's mouth.
      control: says what they do, where they do something; the folder belongs to it.
    """
    recipe = run.recipe
    directory = run.workdir / "evaluation" / name
    source, count = _held_out(recipe)
    chosen = run.protocols[protocol]
    sampling = Sampling(temperature=0.0, seed=recipe.seed)
    times: list[float] = []  # when the weights were there, and when each episode ended

    def load() -> RolloutView:
        view = run.programs.resharder(run.load(checkpoint))
        times.append(time.perf_counter())
        return view

    def begin(sample: Sample) -> Episode:
        episode = Episode(change(sample), chosen, run.processor, recipe.limits, sampling)
        prepare(episode)
        return episode

    def finish(episode: Episode) -> Trajectory:
        times.append(time.perf_counter())
        record = episode.trajectory(stream="on_policy", policy_version=0, banned_sha256=run.banned_sha256)
        return rewards(locate_answer(record, run.processor.chat.decode))[0]

    samples = (source[i] for i in range(count))
    settings = play_settings(checkpoint, recipe.rollout.dtype, chosen, recipe.limits, sampling)
    play_samples(
        load,
        run.engine,
        noted(samples, directory) if is_main() else samples,
        count=count,
        begin=begin,
        finish=finish,
        settings=settings | ({"control": dict(control)} if control else {}),
        directory=directory,
        title=name,
    )
    if len(times) > 1:
        with (directory / file_of(jax.process_index(), TIMING)).open("a") as file:
            file.write(json.dumps({"episodes": len(times) - 1, "seconds": times[-1] - times[0]}) + "\n")
    wait_for_all("their times are written")
    return directory


def _held_out(recipe: Recipe) -> tuple[Source, int]:
    """The source of held-out samples, and how many of its first are played."""
    source = load_source(recipe.evaluation)
    return source, min(recipe.evaluation_samples or len(source), len(source))


def main() -> None:
    given = flags.FLAGS
    phases, rules = list(given.phase), find_rules(given.rules)
    if unknown := [phase for phase in phases if phase not in PHASES]:
        raise ConfigError(f"--phase={unknown[0]}: there is no such phase; there are {', '.join(PHASES)}")
    plays = "predict" in phases
    if given.workdir is None or (given.config is None and (plays or not (given.name or given.stage))):
        raise ConfigError(
            "--config=FILE and --workdir=DIR must be given (to score or report, --workdir and --name); --help shows examples"
        )
    if (given.judge_requests or given.judge_responses) and not (given.judge and any(rule.judged for rule in rules)):
        raise ConfigError("--judge_requests and --judge_responses: name the --judge, and in --rules a rule that needs one")
    if not plays:
        jax.config.update("jax_platforms", "cpu")  # nothing is computed; an accelerator may be others'
    recipe = Recipe.from_config(given.config) if given.config is not None else None
    stage = given.stage or (recipe.schedule[-1] if recipe else "")
    control = {key: value for key, value in (("control", given.control), ("look", given.look)) if value not in ("", "model")}
    name = given.name or "-".join([stage, *control.values()])
    directory = Path(given.workdir) / "evaluation" / name
    if plays and recipe:
        _predict(recipe, stage, name, control)
    if is_main():
        if "score" in phases:
            _score(directory, rules)
        if "report" in phases:
            _report(directory, name)
    wait_for_all("results are written")


def _predict(recipe: Recipe, stage: str, name: str, control: Mapping[str, str]) -> None:
    """The first phase, as the flags say it."""
    workdir = Path(flags.FLAGS.workdir)
    if stage not in recipe.stages:
        raise ConfigError(f"--stage={stage}: there is no such stage; there are {', '.join(recipe.stages)}")
    checkpoint = Folder.open(flags.FLAGS.checkpoint or workdir / stage / "model")
    if not checkpoint.exists("config.json"):
        raise CheckpointError(f"{checkpoint.name}: no checkpoint here; train first, or give --checkpoint")
    protocol = recipe.stages[stage].protocol
    how: dict[str, Any] = {}
    if "look" in control:
        look_tool(recipe.all_protocols()[protocol])  # says at once where there is none
        how["prepare"] = put_look(LOOKS[control["look"]])
    if "control" in control:
        how["change"] = blank if control["control"] == "blank" else wrong_image(*_held_out(recipe))
    log_to(workdir)
    run = Run(recipe, workdir)
    rewards = recipe.rewards(stage)
    predict(run, checkpoint=checkpoint, protocol=protocol, name=name, rewards=rewards, control=control, **how)


def _score(directory: Path, rules: list[Rule]) -> None:
    """The second phase. A sample that failed is counted as wrong, and beside the scores."""
    judgements = _judgements(directory, rules) if flags.FLAGS.judge else None
    found = write_scores(directory, rules, judgements)
    print(json.dumps({key: value for key, value in found.items() if key != "rules"}, indent=2))
    print(table(found))
    print(f"failures: {kinds(read_failures(directory))}")
    print(f"trajectories: {directory}; scores: {directory / SCORES}")


def _judgements(directory: Path, rules: list[Rule]) -> Judgements:
    """What the judge has said, with what --judge_responses brings; writes what it has yet to be asked to --judge_requests."""
    kept = Judgements(directory / "judgements.jsonl", flags.FLAGS.judge)
    asked = to_be_judged(rules, read_outcomes(directory))
    if flags.FLAGS.judge_responses:
        silent = kept.import_responses(asked, Path(flags.FLAGS.judge_responses))
        print(f"judge: {len(asked) - len(kept.missing(asked))} of {len(asked)} answers judged, {silent} replies say nothing")
    if flags.FLAGS.judge_requests:
        requests = kept.export_requests(asked, Path(flags.FLAGS.judge_requests))
        print(f"judge: {requests} answers to be judged, in {flags.FLAGS.judge_requests}")
    return kept


def _report(directory: Path, name: str) -> None:
    """The third phase: a row of the summary for the episodes, and one for each rule."""
    try:
        found = json.loads((directory / SCORES).read_text())
    except FileNotFoundError:
        raise DataError(f"{directory / SCORES}: there is no such file; --phase=score makes it") from None
    looks = ("n", "iou", "centre_error_px", "tight_box_share", "action_success", "answered", "mean_reward", "failures")
    rows = {name: {key: found[key] for key in looks} | found["per_sample"]}
    for rule, scores in found["rules"].items():
        if scores["n"]:
            rows[rule] = {"n": scores["n"], "accuracy": scores["score"], "interval": scores["interval"]}
    section = ReportSection(name, read_trajectories(directory))
    page = write_report(directory / "report", [section], title=f"{name}: {found['samples']} samples", summary=rows)
    print(f"report: {page}")


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_string("workdir", None, "Where the recipe was trained, and where results go.")
    flags.DEFINE_string("stage", "", "Stage whose model is evaluated; the last one scheduled by default.")
    flags.DEFINE_string("checkpoint", "", "A checkpoint, instead of a stage's model: a directory, gs:// URL or hub repository.")
    flags.DEFINE_string("name", "", "Name of the results; by default the stage's, with those of the controls.")
    flags.DEFINE_list("phase", list(PHASES), "What is done, of predict, score and report.")
    flags.DEFINE_list("rules", BY_DEFAULT, f"Scoring rules, of {', '.join(RULES)}.")
    flags.DEFINE_string("judge", "", "The judge whose judgements count, by the name of its model.")
    flags.DEFINE_string("judge_requests", "", "File to write what the judge has to be asked to.")
    flags.DEFINE_string("judge_responses", "", "File to read what the judge said from.")
    flags.DEFINE_enum("control", "", ["", "blank", "wrong_image"], "What the model sees instead of its image.")
    flags.DEFINE_enum("look", "model", ["model", *LOOKS], "Whose box the first turn looks at; none: the whole image.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
