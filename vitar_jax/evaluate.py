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
  report   writes the pages, with the text of tokens where --config says which they are, and with images where --images asks
           for them; --single_file puts all into one file.

`medevalkit-judge` has open answers judged by a language model: --judge names it, and it is asked at --judge_url, or by file:
--judge_requests writes what it has to be asked (OpenAI's batch format), --judge_responses takes in what it said.

A recipe with several `benchmarks` has a folder for each, WORKDIR/evaluation/NAME/BENCHMARK, and a table of all of them.

--protocol=direct has one round, --forced as many as the protocol has, else the model may answer in any.
--control and --look tell what of a score is left without the image, or with a box that the model did not choose. All
of these have a folder of their own.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import jax
from absl import flags

from vitar_jax.data.sources import load_source
from vitar_jax.episodes.protocols import find_protocol
from vitar_jax.episodes.trajectory import read_trajectories
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.evaluation.controls import LOOKS, blank, look_tool, put_look, wrong_image
from vitar_jax.evaluation.judge import ChatJudge, Judgements
from vitar_jax.evaluation.outcomes import SAMPLES, read_outcomes
from vitar_jax.evaluation.predict import predict
from vitar_jax.evaluation.report import MOST_IN_A_PAGE, ReportSection, write_report
from vitar_jax.evaluation.report_episode import Pieces
from vitar_jax.evaluation.results import SCORES, overview, read_marks, read_scores, table, to_be_judged, write_scores
from vitar_jax.evaluation.rules import RULES, Rule, find_rules
from vitar_jax.evaluation.summary import summary_rows
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import log_to
from vitar_jax.rollout.offline import kinds, read_failures
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.endpoint import ChatClient
from vitar_jax.runtime.remote import CheckpointFolder

PHASES = ("predict", "score", "report")
BY_DEFAULT = [name for name, rule in RULES.items() if not rule.judged and not name.endswith("-published")]


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
    asks = given.judge_url or given.judge_requests or given.judge_responses
    if asks and not (given.judge and any(rule.judged for rule in rules)):
        raise ConfigError(
            "--judge_url, --judge_requests and --judge_responses: name the --judge, and in --rules a rule that needs one"
        )
    if not plays:
        jax.config.update("jax_platforms", "cpu")  # nothing is computed; an accelerator may be others'
    recipe = Recipe.from_config(given.config) if given.config is not None else None
    stage = given.stage or (recipe.schedule[-1] if recipe else "")
    control = {key: value for key, value in (("control", given.control), ("look", given.look)) if value not in ("", "model")}
    played = [Path(given.protocol.rpartition(":")[2]).stem] * bool(given.protocol) + ["forced"] * given.forced
    name = given.name or "-".join([stage, *played, *control.values()])
    directory = Path(given.workdir) / "evaluation" / name
    benchmarks = _benchmarks(recipe, directory)
    pieces = None
    if plays and recipe:
        pieces = _predict(recipe, stage, name, control, benchmarks)
    elif "report" in phases and recipe:  # in every process, as they wait for each other here
        pieces = recipe.build_processor(Path(given.workdir)).chat.pieces
    if is_main():
        if "score" in phases:
            _score({key: directory / key for key in benchmarks or [""]}, rules)
        if "report" in phases:
            _report({key: directory / key for key in benchmarks or [""]}, directory, name, pieces)
    wait_for_all("results are written")


def _benchmarks(recipe: Recipe | None, directory: Path) -> list[str]:
    """Names of the benchmarks that the flags choose: of the recipe, or without one those in the folder; empty: `evaluation`."""
    known = list(recipe.benchmarks) if recipe else sorted(path.parent.name for path in directory.glob(f"*/{SAMPLES}"))
    for chosen in flags.FLAGS.benchmarks:
        if chosen not in known:
            raise ConfigError(
                f"--benchmarks: {chosen!r} is not one of {', '.join(known) or 'those of the recipe, which has none'}"
            )
    return flags.FLAGS.benchmarks or known


def _predict(recipe: Recipe, stage: str, name: str, control: Mapping[str, str], benchmarks: Sequence[str]) -> Pieces:
    """The first phase, as the flags say it. Returns what gives its tokens' text."""
    workdir = Path(flags.FLAGS.workdir)
    if stage not in recipe.stages:
        raise ConfigError(f"--stage={stage}: there is no such stage; there are {', '.join(recipe.stages)}")
    checkpoint = CheckpointFolder.open(flags.FLAGS.checkpoint or workdir / stage / "model")
    if not checkpoint.exists("config.json"):
        raise CheckpointError(f"{checkpoint.name}: no checkpoint here; train first, or give --checkpoint")
    protocol = find_protocol(flags.FLAGS.protocol or recipe.stages[stage].protocol, recipe.all_protocols)
    if flags.FLAGS.forced:
        protocol = dataclasses.replace(protocol, early_answer=False)
    change, prepare = None, None
    if "look" in control:
        look_tool(protocol)  # says at once where there is none
        prepare = put_look(LOOKS[control["look"]])
    sources = {f"{name}/{key}": recipe.benchmarks[key] for key in benchmarks} or {name: recipe.evaluation}
    opened = {folder: load_source(source) for folder, source in sources.items()}  # a wrong path is said at once
    log_to(workdir)
    run = Run(recipe, workdir)
    rewards = recipe.rewards(stage)
    player = run.player(checkpoint, protocol)
    for folder, source in opened.items():
        count = recipe.held_out(source)
        if "control" in control:
            change = blank if control["control"] == "blank" else wrong_image(source, count)
        predict(
            player,
            source,
            workdir / "evaluation" / folder,
            count=count,
            title=folder,
            reward=lambda trajectory: rewards(trajectory)[0],
            change=change,
            prepare=prepare,
            control=control,
        )
    return player.processor.chat.pieces


def _score(folders: Mapping[str, Path], rules: list[Rule]) -> None:
    """The second phase, by benchmark. A sample that failed is counted as wrong, and beside the scores."""
    scores = {}
    for name, directory in folders.items():
        judgements = _judgements(directory, rules) if flags.FLAGS.judge else None
        found = scores[name] = write_scores(directory, rules, judgements)
        if name:
            print(name)
        print(table(found))
        print(f"failures: {kinds(read_failures(directory))}")
        print(f"trajectories: {directory}; scores: {directory / SCORES}")
    if len(scores) > 1:
        print(overview(scores))


def _judgements(directory: Path, rules: list[Rule]) -> Judgements:
    """What the judge has said, with what the flags bring, and where it has yet to be asked, what."""
    given = flags.FLAGS
    asked = to_be_judged(rules, read_outcomes(directory))
    kept = Judgements(directory / "judgements.jsonl", given.judge)
    if given.judge_responses:
        silent = kept.import_responses(asked, Path(given.judge_responses))
        print(f"judge: {silent} responses say nothing")
    if given.judge_url:
        key = os.environ.get(given.judge_key_variable, "")
        client = ChatClient(given.judge_url, given.judge, directory / "judge_replies.jsonl", {"temperature": 0}, key=key)
        with closing(client):
            kept.ask(ChatJudge(client), asked)
        print(f"judge: {', '.join(f'{what} {n}' for what, n in client.counts.most_common()) or 'nothing to ask'}")
    if given.judge_requests:
        requests = kept.export_requests(asked, Path(given.judge_requests))
        print(f"judge: {requests} answers to be judged, in {given.judge_requests}")
    return kept


def _report(folders: Mapping[str, Path], directory: Path, name: str, pieces: Pieces | None) -> None:
    """The third phase, in `directory`: for each benchmark a row of the summary for the episodes, and one for each rule."""
    scores = {key or name: read_scores(folder) for key, folder in folders.items()}
    samples = sum(found["samples"] for found in scores.values())
    rows = {row: cells for key, found in scores.items() for row, cells in summary_rows(key, found).items()}
    sections = [ReportSection(key or name, read_trajectories(folder), *read_marks(folder)) for key, folder in folders.items()]
    page = write_report(
        directory / "report",
        sections,
        title=f"{name}: {samples} samples",
        summary=rows,
        pieces=pieces,
        images=flags.FLAGS.images,
        single_file=flags.FLAGS.single_file,
    )
    print(f"report: {page}")


def define_flags() -> None:
    config_flag.define(Recipe, "Recipe file, for example configs/quickstart.py.")
    flags.DEFINE_string("workdir", None, "Where the recipe was trained, and where results go.")
    flags.DEFINE_string("stage", "", "Stage whose model is evaluated; the last one scheduled by default.")
    flags.DEFINE_string("checkpoint", "", "A checkpoint, instead of a stage's model: a directory, gs:// URL or hub repository.")
    flags.DEFINE_string("name", "", "Name of the results; by default the stage's, with those of the controls.")
    flags.DEFINE_list("phase", list(PHASES), "What is done, of predict, score and report.")
    flags.DEFINE_string("protocol", "", "How samples are played, as a recipe names it; by default as in the stage.")
    flags.DEFINE_boolean("forced", False, "Whether every round is played: an answer before the last is an error.")
    flags.DEFINE_list("benchmarks", [], "Those of the recipe's `benchmarks` that are meant; all by default.")
    flags.DEFINE_list("rules", BY_DEFAULT, f"Scoring rules, of {', '.join(RULES)}.")
    flags.DEFINE_string("judge", "", "The judge whose judgements count, by the name of its model.")
    flags.DEFINE_string("judge_url", "", "Endpoint to ask the judge at, say http://127.0.0.1:8000/v1.")
    flags.DEFINE_string("judge_key_variable", "OPENAI_API_KEY", "Environment variable that holds the endpoint's key.")
    flags.DEFINE_string("judge_requests", "", "File to write what the judge has to be asked to.")
    flags.DEFINE_string("judge_responses", "", "File to read what the judge said from.")
    flags.DEFINE_enum("control", "", ["", "blank", "wrong_image"], "What the model sees instead of its image.")
    flags.DEFINE_enum("look", "model", ["model", *LOOKS], "Whose box the first turn looks at; none: the whole image.")
    flags.DEFINE_bool("images", False, "Whether the report shows the episodes' images, which may be patients'.")
    flags.DEFINE_bool("single_file", False, f"Whether the report is one file, of at most {MOST_IN_A_PAGE} episodes.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
