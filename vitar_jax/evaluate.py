"""Evaluates a checkpoint on held-out samples: trajectories as JSONL, scores, and a report that opens from disk.

Examples:
  python -m vitar_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart
  python -m vitar_jax.evaluate --config=configs/quickstart.py --workdir=runs/quickstart --stage=one_look
  python -m vitar_jax.evaluate --config=configs/vqa_rad_small.py --workdir=runs/vqa \\
      --config.data.source=VQA_RAD_DIR --config.data.processor=QWEN_DIR

Without --checkpoint it takes the stage's model from WORKDIR. Results go to WORKDIR/evaluation/NAME; run again, also on another
number of processes, it goes on after the last sample that was answered. A sample that cannot be played is counted as a failure
and not scored.
"""

import json
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vitar_jax import cli
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory, read_trajectories
from vitar_jax.errors import CheckpointError, ConfigError
from vitar_jax.evaluation.report import ReportSection, write_report
from vitar_jax.evaluation.scoring import Scores, score
from vitar_jax.inference import play_settings
from vitar_jax.learning.rewards import Rewards
from vitar_jax.models.folder import Folder
from vitar_jax.parallel.distributed import is_main, wait_for_all
from vitar_jax.recipe import Recipe
from vitar_jax.rollout.offline import kinds, play_samples, read_failures
from vitar_jax.train import Run
from vitar_jax.workdir import log_to


def evaluate(
    run: Run,
    *,
    checkpoint: Path | Folder,
    protocol: str,
    name: str,
    rewards: Rewards,
    prepare: Callable[[Episode], None] = lambda episode: None,
) -> Scores:
    """Plays the recipe's held-out samples greedily into WORKDIR/evaluation/NAME and scores them, in every process.

    Args:
      prepare: what happens to an episode before it is played; a control puts a turn into the model's mouth here.
    """
    recipe = run.recipe
    directory = run.workdir / "evaluation" / name
    source = load_source(recipe.evaluation)
    count = min(recipe.evaluation_samples or len(source), len(source))
    chosen = run.protocols[protocol]
    sampling = Sampling(temperature=0.0, seed=recipe.seed)

    def begin(sample: Sample) -> Episode:
        episode = Episode(sample, chosen, run.processor, recipe.limits, sampling)
        prepare(episode)
        return episode

    def finish(episode: Episode) -> Trajectory:
        record = episode.trajectory(stream="on_policy", policy_version=0, banned_sha256=run.banned_sha256)
        return rewards(record)[0]

    play_samples(
        lambda: run.programs.resharder(run.load(checkpoint)),
        run.engine,
        (source[i] for i in range(count)),
        count=count,
        begin=begin,
        finish=finish,
        settings=play_settings(checkpoint, recipe.rollout.dtype, chosen, recipe.limits, sampling),
        directory=directory,
        title=name,
    )
    return score(read_trajectories(directory))


def main() -> None:
    if flags.FLAGS.config is None or flags.FLAGS.workdir is None:
        raise ConfigError("--config=FILE and --workdir=DIR must be given; --help shows examples")
    workdir = Path(flags.FLAGS.workdir)
    recipe = Recipe.from_config(flags.FLAGS.config)
    stage = flags.FLAGS.stage or recipe.schedule[-1]
    if stage not in recipe.stages:
        raise ConfigError(f"--stage={stage}: there is no such stage; there are {', '.join(recipe.stages)}")
    checkpoint = Folder.open(flags.FLAGS.checkpoint or workdir / stage / "model")
    if not checkpoint.exists("config.json"):
        raise CheckpointError(f"{checkpoint.name}: no checkpoint here; train first, or give --checkpoint")
    log_to(workdir)
    run = Run(recipe, workdir)
    name = flags.FLAGS.name or stage
    protocol = recipe.stages[stage].protocol
    scores = evaluate(run, checkpoint=checkpoint, protocol=protocol, name=name, rewards=recipe.rewards(stage))
    if is_main():
        _write_results(workdir / "evaluation" / name, name, scores)
    wait_for_all("results are written")


def _write_results(directory: Path, name: str, scores: Scores) -> None:
    """Scores and the report. A sample that failed stands beside the scores, not in them."""
    failures = read_failures(directory)
    found = scores.to_json() | {"failures": len(failures)}
    (directory / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    section = ReportSection(name, read_trajectories(directory))
    page = write_report(directory / "report", [section], title=f"{name}: {scores.n} samples", summary={name: found})
    print(json.dumps(found, indent=2))
    print(f"failures: {kinds(failures)}")
    print(f"trajectories: {directory}; report: {page}")


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_string("workdir", None, "Where the recipe was trained, and where results go.")
    flags.DEFINE_string("stage", "", "Stage whose model is evaluated; the last one scheduled by default.")
    flags.DEFINE_string("checkpoint", "", "A checkpoint, instead of a stage's model: a directory, gs:// URL or hub repository.")
    flags.DEFINE_string("name", "", "Name of the results; the stage's by default.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
