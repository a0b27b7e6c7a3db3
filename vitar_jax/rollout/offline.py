"""Offline play: any number of samples to a file of trajectories, resumable by sample."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory, TrajectoryWriter, read_trajectories
from vitar_jax.errors import ConfigError
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.view import RolloutView


def play_samples(
    view: RolloutView,
    engine: Engine,
    samples: Iterable[Sample],
    *,
    begin: Callable[[Sample], Episode],
    finish: Callable[[Episode], Trajectory],
    settings: str,
    directory: Path,
    progress: Callable[[int], object],
) -> None:
    """Plays what `directory` does not hold yet and appends it there, a wave of slots at a time.

    Args:
      begin: makes a sample's episode; called on the engine's pool.
      finish: makes its record.
      settings: whatever else decides the result (weights, protocol); a directory belongs to one value of it.
      progress: called with the number of samples done, those of earlier runs included.

    Raises:
      ConfigError: the directory holds trajectories of other settings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stamp = directory / "settings.json"
    if stamp.exists() and json.loads(stamp.read_text()) != settings:
        raise ConfigError(f"{directory} holds trajectories of another model or other settings; take another directory")
    stamp.write_text(json.dumps(settings))
    writer = TrajectoryWriter(directory)
    done = {trajectory.sample_id for trajectory in read_trajectories(directory)} if writer.path.exists() else set()
    progress(len(done))
    waiting = (sample for sample in samples if sample.sample_id not in done)
    for wave in _waves(waiting, engine.config.slots):
        episodes = list(engine.pool.map(begin, wave))
        writer.write([finish(episode) for episode in engine.play(view, ([e] for e in episodes))])
        done |= {sample.sample_id for sample in wave}
        progress(len(done))


def _waves(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while wave := list(islice(samples, size)):
        yield wave
