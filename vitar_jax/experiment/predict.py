"""Plays held-out samples with a checkpoint."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from vitar_jax.data.sources import Source, load_source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling, Trajectory, file_of
from vitar_jax.evaluation.confidence import locate_answer
from vitar_jax.evaluation.outcomes import noted
from vitar_jax.evaluation.results import TIMING
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.learning.rewards import Rewards
from vitar_jax.rollout.checkpoint_settings import play_settings
from vitar_jax.rollout.offline import play_samples
from vitar_jax.rollout.weights import RolloutView
from vitar_jax.runtime.distributed import is_main, wait_for_all
from vitar_jax.runtime.remote import CheckpointFolder


def predict(
    run: Run,
    *,
    checkpoint: Path | CheckpointFolder,
    protocol: Protocol,
    name: str,
    rewards: Rewards,
    source: Source | None = None,
    load: Callable[[], RolloutView] | None = None,
    change: Callable[[Sample], Sample] = lambda sample: sample,
    prepare: Callable[[Episode], None] = lambda episode: None,
    control: Mapping[str, str] | None = None,
) -> Path:
    """Plays held-out samples greedily into WORKDIR/evaluation/NAME, in every process, and returns that folder.

    Args:
      source: of the samples; the recipe's `evaluation` by default.
      load: gives the checkpoint's weights, by default anew.
      change: what happens to a sample, and `prepare` to an episode, before it is played; a control takes the image away
        here, or puts a turn into the model's mouth.
      control: says what they do, where they do something; the folder belongs to it.
    """
    recipe = run.recipe
    directory = run.workdir / "evaluation" / name
    source = source or load_source(recipe.evaluation)
    count = held_out(recipe, source)
    sampling = Sampling(temperature=0.0, seed=recipe.seed)
    times: list[float] = []  # when the weights were there, and when each episode ended

    def loaded() -> RolloutView:
        view = load() if load else run.view(checkpoint)
        times.append(time.perf_counter())
        return view

    def begin(sample: Sample) -> Episode:
        episode = Episode(change(sample), protocol, run.processor, recipe.limits, sampling)
        prepare(episode)
        return episode

    def finish(episode: Episode) -> Trajectory:
        times.append(time.perf_counter())
        record = episode.trajectory(stream="on_policy", policy_version=0, banned_sha256=run.banned_sha256)
        return rewards(locate_answer(record, run.processor.chat.decode))[0]

    samples = (source[i] for i in range(count))
    settings = play_settings(checkpoint, recipe.rollout.dtype, protocol, recipe.limits, sampling)
    play_samples(
        loaded,
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


def held_out(recipe: Recipe, source: Source) -> int:
    """How many of the first samples are played."""
    return min(recipe.evaluation_samples or len(source), len(source))
