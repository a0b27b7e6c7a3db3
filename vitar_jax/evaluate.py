"""Evaluates a checkpoint: plays held-out samples, scores the answers under named rules, and writes a report.

Examples:
  python -m vitar_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
  python -m vitar_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart --stage=grpo --look=random
  python -m vitar_jax.evaluate --checkpoint=runs/quickstart/grpo/model --workdir=runs/eval \\
      --benchmarks=vqa_rad,pmc_vqa/test_clean --data_dir=DATA
  python -m vitar_jax.evaluate --endpoint=http://localhost:8000/v1 --model=NAME --protocol=zoom --workdir=runs/eval \\
      --benchmarks=vqa_rad --data_dir=DATA
  python -m vitar_jax.evaluate --workdir=runs/vqa --name=grpo --phase=score,report --rules=medevalkit-em,mine.py:rule

Writes to WORKDIR/evaluation/NAME, with one folder per benchmark if a recipe or --benchmarks names benchmarks. There are three
phases:

  predict  plays the samples. You can stop it at any time; rerunning the command, on any number of processes, keeps finished
           samples and retries failures.
  score    applies rules and measures to the played samples; needs no checkpoint, data set or accelerator.
  report   writes the pages. They show images only with --show_images; --single_file writes one file.

With --config, the command plays the model of a stage on the recipe's benchmarks or, if it has none, on its `evaluation`.
Without --config, it plays --checkpoint on --benchmarks; --attention, --max_pixels, --stop_tokens, --dtype, --slots and --tensor
are then what a recipe says otherwise. A benchmark is a data set that data_prep built in --data_dir (NAME or
NAME/SPLIT), or any data set by its name, `package.module:name` or `path/to/file.py:name`.

--endpoint plays a model that others serve, by chat completions; tools run here. --frame=normalized_1000 is for models that
write boxes from 0 to 1000. The replies are kept beside the results, so that nothing is asked twice. Records have no tokens and
no log-probabilities, unless --checkpoint is the served model's own and the server returns token ids, as vitar_jax.serve does.

The primary rule marks answers right or wrong in tables and reports: --primary, else the benchmark's rule, else the first rule.

The rules `vrt` and `vrt-strict` score the masks of samples with objects: R-LQ, R-SQ and A-mIoU, pooled over masks and also by
class of question (the metadata `classes`).

Under the rule `medevalkit-judge`, a language model judges open answers. --judge names the model. --judge_url asks it directly;
alternatively, --judge_requests writes a batch file for it (OpenAI's format) and --judge_responses reads the replies.
--judge_request='{"temperature": null, "max_completion_tokens": 4096}' changes fields of the requests and leaves others out.

--protocol=direct plays one turn, --forced plays every turn of the protocol. --control and --look measure the score that remains
on changed images, or with a box that the model did not choose. Each combination has a folder of its own. Controls are listed in
vitar_jax/data/interventions.py: blank, wrong_image, blur:SIGMA, flip, region_erased and others. Some need the boxes or masks of
the reference. --sweep=blur evaluates without a control and at growing doses, and draws the scores. Other controls act on the
masks that the model outlined in an earlier evaluation, --of=NAME:

  python -m vitar_jax.evaluate --config=RECIPE.py --workdir=runs/masks --stage=grpo
  python -m vitar_jax.evaluate --config=RECIPE.py --workdir=runs/masks --stage=grpo --control=erase_masks --of=grpo
  python -m vitar_jax.evaluate --config=RECIPE.py --workdir=runs/masks --stage=grpo --control=erase_elsewhere --of=grpo

The last command also prints how many right answers turn wrong when the evidence is erased, beside those when as large a region
elsewhere is. --skip_missing leaves out samples in which the control finds nothing to change.

--reference_logprobs also scores the reference answers by teacher forcing (`evaluation/reference.py`). Given for an evaluation
and for its control, vitar_jax.compare prints what the image adds to their log-probability.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import jax
from absl import flags

from vitar_jax.data.interventions import INTERVENTIONS
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.protocols import find_protocol
from vitar_jax.episodes.regions import FRAMES
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import read_trajectories
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.evaluation.benchmarks import Benchmark, named_benchmark
from vitar_jax.evaluation.controls import LOOKS, Variant
from vitar_jax.evaluation.judge import REQUEST
from vitar_jax.evaluation.judging import JudgeSettings, judgements
from vitar_jax.evaluation.measures import Measure, find_measures
from vitar_jax.evaluation.outcomes import SAMPLES
from vitar_jax.evaluation.predict import predict
from vitar_jax.evaluation.reference import ReferenceScorer, score_references
from vitar_jax.evaluation.reliance import dependence, dependence_table
from vitar_jax.evaluation.report import MOST_IN_A_PAGE, ReportSection, write_report
from vitar_jax.evaluation.report_episode import Pieces
from vitar_jax.evaluation.results import SCORES, overview, read_marks, read_scores, table, write_scores
from vitar_jax.evaluation.rules import RULES, Rule
from vitar_jax.evaluation.summary import summary_rows
from vitar_jax.evaluation.sweep import SWEEPS, sweep_variants, write_dose_curve
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import log_to
from vitar_jax.rollout.endpoint_player import EndpointPlayer
from vitar_jax.rollout.offline import kinds, read_failures
from vitar_jax.rollout.player import Player
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.endpoint import request_options
from vitar_jax.runtime.help import subject
from vitar_jax.runtime.remote import CheckpointFolder

DEPENDENCE = "dependence.json"
PHASES = ("predict", "score", "report")
Benchmarks = Mapping[str, Benchmark]
# The keys of a recipe that stand for the flags of a checkpoint without one.
_IN_RECIPE = {
    "attention": "model.attention",
    "max_pixels": "processor.max_pixels",
    "stop_tokens": "processor.stop_tokens",
    "dtype": "rollout.dtype",
    "slots": "rollout.slots",
    "tensor": "rollout.tensor",
}


def main() -> None:
    given = flags.FLAGS
    phases = list(given.phase)
    if unknown := [phase for phase in phases if phase not in PHASES]:
        raise ConfigError(f"--phase: got {unknown[0]!r}, expected {', '.join(PHASES)}")
    plays = "predict" in phases
    recipe = Recipe.from_config(given.config) if given.config is not None else None
    if given.workdir is None or not (
        recipe
        or (given.checkpoint or given.endpoint if plays else (given.name or given.stage or given.checkpoint or given.model))
    ):
        raise ConfigError(
            "evaluate: needs --workdir and --config, or --workdir, --checkpoint (or --endpoint) and --benchmarks (to score or "
            "report: --workdir and --name); --help shows examples"
        )
    if recipe and given.endpoint:
        raise ConfigError("--endpoint: only without --config; name the benchmarks with --benchmarks")
    if given.reference_logprobs and given.endpoint:
        raise ConfigError("--reference_logprobs: needs the model's weights; leave it out with --endpoint")
    if recipe and (ignored := [name for name in _IN_RECIPE if given[name].present]):
        raise ConfigError(f"--{ignored[0]}: only without --config; with it, set --config.{_IN_RECIPE[ignored[0]]}")
    workdir = Path(given.workdir)
    variant = Variant(
        given.protocol, given.forced, given.control, given.look, of=given.of, skip_missing=given.skip_missing
    )
    if not plays:
        jax.config.update("jax_platforms", "cpu")  # leaves the accelerator to other processes; scoring needs none
    stage = given.stage or (recipe.schedule[-1] if recipe else _label(given.model or given.checkpoint))
    name = given.name or "-".join(filter(None, [stage, variant.name]))
    runs = sweep_variants(given.sweep, variant, given.name, stage) if given.sweep else {name: variant}
    evaluations = workdir / "evaluation"
    benchmarks = _benchmarks(given.benchmarks, recipe, evaluations / name, given.data_dir, named=plays)
    rules = {key: benchmark.find_rules(given.rules, given.primary) for key, benchmark in benchmarks.items()}
    measures = find_measures(given.measures)
    judge = JudgeSettings(
        given.judge,
        given.judge_url,
        given.judge_key_variable,
        request_options("--judge_request", given.judge_request, REQUEST),
        given.judge_requests,
        given.judge_responses,
    )
    asks = judge.url or judge.requests or judge.responses
    if asks and not (judge.model and any(rule.judged for chosen in rules.values() for rule in chosen)):
        raise ConfigError("--judge_url, --judge_requests and --judge_responses need --judge and a rule that needs a judge")
    pieces = None
    if plays and recipe:
        pieces = _play_stage(recipe, workdir, stage, given.checkpoint, benchmarks, runs)
    elif plays and given.endpoint:
        asked = {"protocol": given.protocol, "max_pixels": given.max_pixels, "checkpoint": given.checkpoint}
        player = EndpointPlayer.open(directory=evaluations / name, **asked, **cli.endpoint_flags())
        with closing(player.client):
            pieces = _play({key: player for key in benchmarks}, benchmarks, runs, workdir)
        cli.say(f"endpoint: {', '.join(f'{what} {n}' for what, n in player.client.counts.most_common()) or 'nothing to ask'}")
        for reason in player.client.reasons.values():
            cli.say(f"endpoint: {reason}")
    elif plays:
        player = Player.load(
            given.checkpoint, protocol=given.protocol, slots=given.slots, tensor=given.tensor, **cli.loading_flags()
        )
        pieces = _play({key: player for key in benchmarks}, benchmarks, runs, workdir)
    elif "report" in phases and recipe:  # in every process, because this is a barrier
        pieces = build.processor(recipe, workdir).chat.pieces
    if is_main():
        for name in runs:
            directory = evaluations / name
            folders = {key: directory / key for key in benchmarks}
            if "score" in phases:
                _score(folders, rules, measures, judge)
                if variant.of:
                    _say_dependence(folders, evaluations, variant.of)
            if "report" in phases:
                _report(folders, directory, name, pieces, images=given.show_images, single_file=given.single_file)
        if given.sweep and "score" in phases:
            _say_doses(given.sweep, evaluations, list(runs), list(benchmarks))
    wait_for_all("results are written")


def _say_doses(sweep: str, evaluations: Path, names: Sequence[str], benchmarks: Sequence[str]) -> None:
    """Prints and writes the dose curve of each benchmark."""
    for key in benchmarks:
        folders = dict(zip(SWEEPS[sweep], (evaluations / name / key for name in names), strict=True))
        directory = evaluations / f"{names[0]}-sweep_{sweep}" / key
        print(write_dose_curve(sweep, folders, directory))
        print(f"figure: {directory / 'sweep.png'}")


def _label(checkpoint: str) -> str:
    """Returns the results' name for a checkpoint: "grpo" for runs/quickstart/grpo/model."""
    parts = [part for part in Path(checkpoint).parts if part not in ("model", "best")]
    return parts[-1] if parts else "checkpoint"


def _benchmarks(chosen: Sequence[str], recipe: Recipe | None, directory: Path, data_dir: str, *, named: bool) -> Benchmarks:
    """Returns the benchmarks to evaluate, by the names of their folders. "" is the recipe's `evaluation`.

    Without a recipe, returns the `chosen` benchmarks if `named`, else those with results in `directory`.
    """
    folders: dict[str, str] = {}
    for name in chosen:
        if (other := folders.setdefault(_folder(name), name)) != name:
            raise ConfigError(f"--benchmarks: {other} and {name} would share the folder {_folder(name)}; give each its --name")
    if recipe:
        known = recipe.benchmarks or {"": Benchmark(recipe.evaluation)}
    elif named:
        if not chosen:
            raise ConfigError("--benchmarks: required with --checkpoint or --endpoint if there is no --config")
        made = {name: named_benchmark(name, data_dir) for name in chosen}
        return {_folder(name): benchmark for name, benchmark in made.items()}
    else:
        nothing = named_benchmark("questions")  # only its rules are used
        known = {path.parent.name: nothing for path in sorted(directory.glob(f"*/{SAMPLES}"))} or {"": nothing}
    for name in map(_folder, chosen):
        if name not in known or not name:
            raise ConfigError(f"--benchmarks: got {name!r}, expected {', '.join(filter(None, known)) or 'no name'}")
    return {name: known[name] for name in map(_folder, chosen)} or known


def _folder(name: str) -> str:
    """Returns a benchmark's folder: pmc_vqa-test_clean for `pmc_vqa/test_clean`, mine-cases for `dir/mine.py:cases`."""
    if ":" in name:
        place, _, attribute = name.rpartition(":")
        return f"{Path(place).stem}-{attribute}"
    return name.replace("/", "-")


def _play_stage(
    recipe: Recipe, workdir: Path, stage: str, checkpoint: str, benchmarks: Benchmarks, runs: Mapping[str, Variant]
) -> Pieces:
    """Plays a stage's model, or another checkpoint, with the recipe's settings; returns the decoder of its tokens."""
    if stage not in recipe.stages:
        raise ConfigError(f"--stage={stage}: does not exist; stages are {', '.join(recipe.stages)}")
    folder = CheckpointFolder.open(checkpoint or workdir / stage / "model")
    if not folder.exists("config.json"):
        raise CheckpointError(f"{folder.name}: has no checkpoint; train first, or give --checkpoint")
    known = recipe.all_protocols
    variant = next(iter(runs.values()))  # all play under the same protocol
    protocols = {
        key: find_protocol(variant.protocol or benchmark.protocol or recipe.stages[stage].protocol, known)
        for key, benchmark in benchmarks.items()
    }
    for protocol in protocols.values():
        variant.play_under(protocol)
    for benchmark in benchmarks.values():
        load_source(benchmark.source)  # reports a wrong path before weights are loaded
    log_to(workdir)
    rewards = recipe.rewards(stage)
    first = Run(recipe, workdir).player(folder, next(iter(protocols.values())))
    players = {key: dataclasses.replace(first, protocol=protocol) for key, protocol in protocols.items()}
    return _play(players, benchmarks, runs, workdir, recipe.evaluation_samples, lambda made: rewards(made)[0])


def _play(
    players: Mapping[str, Player] | Mapping[str, EndpointPlayer],
    benchmarks: Benchmarks,
    runs: Mapping[str, Variant],
    workdir: Path,
    most: int = 0,
    reward: Callable[[Trajectory], Trajectory] | None = None,
) -> Pieces:
    """Plays at most `most` samples of each benchmark (0: all) in each run; returns the decoder of the model's tokens."""
    made: dict[object, Player | EndpointPlayer] = {}  # one player per protocol, so that benchmarks share its slots
    sources = {key: load_source(benchmark.source) for key, benchmark in benchmarks.items()}
    scorer = cache(partial(ReferenceScorer.load, next(iter(players.values()))))  # all players have the same weights
    for name, variant in runs.items():
        for key, source in sources.items():
            protocol = variant.play_under(players[key].protocol)
            player = made.setdefault(protocol.name, dataclasses.replace(players[key], protocol=protocol))
            count = min(most or len(source), len(source))
            change, settings = variant.intervene(source, count, workdir / "evaluation" / variant.of / key)
            directory = workdir / "evaluation" / name / key
            predict(
                player,
                source,
                directory,
                count=count,
                title=f"{name}/{key}" if key else name,
                reward=reward,
                change=change,
                skip_missing=variant.skip_missing,
                prepare=variant.prepare,
                control=settings,
            )
            if flags.FLAGS.reference_logprobs:
                samples = (source[index] for index in range(count))
                score_references(scorer, player.begin, samples, directory, change=change)
    return next(iter(players.values())).processor.chat.pieces


def _score(
    folders: Mapping[str, Path], rules: Mapping[str, Sequence[Rule]], measures: Sequence[Measure], judge: JudgeSettings
) -> None:
    """Scores each benchmark and prints its table. Failed samples count as wrong."""
    scores = {}
    for name, directory in folders.items():
        judged = judgements(directory, rules[name], judge) if judge.model else None
        scores[name] = write_scores(directory, rules[name], judged, measures=measures)
        if name:
            print(name)
        print(table(scores[name]))
        print(f"failures: {kinds(read_failures(directory))}")
        print(f"trajectories: {directory}; scores: {directory / SCORES}")
    if len(scores) > 1:
        print(overview(scores))


def _say_dependence(folders: Mapping[str, Path], evaluations: Path, of: str) -> None:
    """Prints and writes how many right answers of an earlier evaluation depend on the evidence that it outlined."""
    for key, directory in folders.items():
        found = dependence(evaluations / of / key, sorted(path / key for path in evaluations.iterdir()))
        (directory / DEPENDENCE).write_text(json.dumps(found, indent=2) + "\n")
        print(f"{of}/{key}" if key else of)
        print(dependence_table(found))
        print(f"dependence: {directory / DEPENDENCE}")


def _report(
    folders: Mapping[str, Path], directory: Path, name: str, pieces: Pieces | None, *, images: bool, single_file: bool
) -> None:
    """Writes the report of all benchmarks to `directory`."""
    scores = {key or name: read_scores(folder) for key, folder in folders.items()}
    samples = sum(found["samples"] for found in scores.values())
    page = write_report(
        directory / "report",
        [ReportSection(key or name, read_trajectories(folder), *read_marks(folder)) for key, folder in folders.items()],
        title=f"{name}: {samples} samples",
        summary={row: cells for key, found in scores.items() for row, cells in summary_rows(key, found).items()},
        pieces=pieces,
        images=images,
        single_file=single_file,
    )
    print(f"report: {page}")


def define_flags() -> None:
    with subject("What to evaluate"):
        config_flag.define(Recipe, "Recipe file, for example configs/quickstart.py.")
        flags.DEFINE_string("workdir", None, "Working directory; with --config, the one in which the recipe was trained.")
        flags.DEFINE_string("stage", "", "Stage whose model to evaluate (default: the last of the schedule).")
        flags.DEFINE_string("checkpoint", "", "Checkpoint to evaluate: directory, gs:// URL or hub ID (default: the stage's).")
        flags.DEFINE_string("name", "", "Name of the results (default: the stage or checkpoint, followed by the variant).")
        flags.DEFINE_list("phase", list(PHASES), "Phases to run (default: all).")
        flags.DEFINE_list("benchmarks", [], "Benchmarks to evaluate (default: all in the recipe).")
        flags.DEFINE_string("data_dir", "", "Directory of data sets built by data_prep, for --benchmarks without --config.")
    with subject("How episodes are played"):
        flags.DEFINE_string("protocol", "", "Protocol to play under (default: the benchmark's, stage's or checkpoint's).")
        flags.DEFINE_bool("forced", False, "Play every turn: an answer before the last turn is an error.")
        flags.DEFINE_enum("look", "model", ["model", *LOOKS], 'Box that the first turn looks at; "none" is the whole image.')
        flags.DEFINE_string(
            "control", "", f"Intervention on each sample: {', '.join(INTERVENTIONS)}, or FILE.py:NAME (default: none)."
        )
        flags.DEFINE_enum("sweep", "", ["", *SWEEPS], "Control to evaluate at growing doses, after none (default: no sweep).")
        flags.DEFINE_string("of", "", "Evaluation in WORKDIR whose masks the control acts on (default: none).")
        flags.DEFINE_bool("skip_missing", False, "Leave out, and count, samples that lack what the control needs.")
    with subject("Scores"):
        flags.DEFINE_list(
            "rules",
            [],
            f"Scoring rules: {', '.join(RULES)}, or FILE.py:NAME (default: the benchmark's, else all that need no judge).",
        )
        flags.DEFINE_list("measures", [], "Measures besides the registered ones: FILE.py:NAME.")
        flags.DEFINE_string("primary", "", "Rule that marks answers right or wrong (default: the benchmark's, else the first).")
        flags.DEFINE_bool(
            "reference_logprobs", False, "Also score reference answers by teacher forcing, which reads the weights once more."
        )
    with subject("The judge of open questions"):
        flags.DEFINE_string("judge", "", "Model name of the judge (default: no judge).")
        flags.DEFINE_string("judge_url", "", "Endpoint to ask the judge at, for example http://127.0.0.1:8000/v1.")
        flags.DEFINE_string("judge_key_variable", "OPENAI_API_KEY", "Environment variable with the endpoint's API key.")
        flags.DEFINE_string(
            "judge_request",
            "{}",
            f"Fields of the judge's requests, as a JSON object merged into {json.dumps(REQUEST)}; null leaves a field out.",
        )
        flags.DEFINE_string("judge_requests", "", "File to write the judge's requests to.")
        flags.DEFINE_string("judge_responses", "", "File to read the judge's responses from.")
    with subject("The report"):
        flags.DEFINE_bool("show_images", False, "Include the episodes' images, which may show patients, in the report.")
        flags.DEFINE_bool("single_file", False, f"Write the report as a single file (at most {MOST_IN_A_PAGE} episodes).")
    with subject("Loading a checkpoint"):
        cli.define_loading_flags()
        flags.DEFINE_integer("slots", 16, "Number of concurrent episodes per process.")
        flags.DEFINE_integer("tensor", 1, "Tensor parallelism: devices per copy of the weights.")
    with subject("Playing an endpoint"):
        cli.define_endpoint_flags(FRAMES)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
