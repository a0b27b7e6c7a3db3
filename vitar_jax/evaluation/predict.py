"""Plays the samples of a data set into a folder, from which scores and reports are computed."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import jax

from vitar_jax.data.interventions import Change
from vitar_jax.data.sources import Source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import file_of
from vitar_jax.errors import DataError
from vitar_jax.evaluation.confidence import locate_answer
from vitar_jax.evaluation.outcomes import record_samples
from vitar_jax.evaluation.results import LEFT_OUT, TIMING
from vitar_jax.rollout.endpoint_player import EndpointPlayer
from vitar_jax.rollout.offline import play_samples
from vitar_jax.rollout.player import Player
from vitar_jax.runtime import cli
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.distributed import is_main, wait_for_all


def predict(
    player: Player | EndpointPlayer,
    source: Source,
    directory: Path,
    *,
    count: int,
    title: str,
    reward: Callable[[Trajectory], Trajectory] | None = None,
    change: Change | None = None,
    skip_missing: bool = False,
    prepare: Callable[[Episode], None] | None = None,
    control: Mapping[str, str] | None = None,
) -> None:
    """Plays the first `count` samples of a source into `directory`; each process plays its shard.

    A rerun keeps finished samples and retries failures. Prints `player.note` on the first question that has one.

    Args:
      title: Title of the progress bar.
      reward: Adds rewards to a trajectory.
      change: The image control.
      skip_missing: Whether samples that lack what the control needs are left out and counted. If not, they are an error.
      prepare: Changes an episode before it is played; box controls write the first turn here.
      control: Names of the active controls, recorded in the settings. All samples of a directory have the same controls.

    Raises:
      DataError: If a sample lacks what the control needs, without `skip_missing`.
    """

    def begin(sample: Sample) -> Episode:
        episode = player.begin(change.draw(sample) if change else sample)
        if prepare:
            prepare(episode)
        return episode

    def finish(trajectory: Trajectory) -> Trajectory:
        located = locate_answer(trajectory, player.processor.chat.decode)
        return reward(located) if reward else located

    left_out: dict[str, str] = {}
    samples: Iterable[Sample] = (source[index] for index in range(count))
    if change:
        samples = _restated(samples, change, left_out if skip_missing else None)
    samples = _noting(samples, player.note)
    played = play_samples(
        player,
        record_samples(samples, directory) if is_main() else samples,
        count=count,
        directory=directory,
        title=title,
        settings={"control": dict(control)} if control else {},
        begin=begin,
        finish=finish,
    )
    if left_out and is_main():
        with atomic_replace(directory / LEFT_OUT) as partial:
            partial.write_text(json.dumps(left_out, indent=2) + "\n")
    if played.episodes:
        with (directory / file_of(jax.process_index(), TIMING)).open("a") as file:
            file.write(json.dumps(dataclasses.asdict(played)) + "\n")
    wait_for_all("timings are written")


def _restated(samples: Iterable[Sample], change: Change, left_out: dict[str, str] | None) -> Iterator[Sample]:
    """Yields the samples with their texts changed. Adds those that lack what the control needs to `left_out`, with the reason.

    Raises:
      DataError: At such a sample, if `left_out` is None.
    """
    for sample in samples:
        try:
            restated = change.restate(sample)
        except DataError as error:
            if left_out is None:
                raise DataError(f"{change.name}: {error}; --skip_missing leaves such samples out") from error
            left_out[sample.sample_id] = str(error)
        else:
            yield restated


def _noting(samples: Iterable[Sample], note: Callable[[Sample], str]) -> Iterator[Sample]:
    """Yields the samples, and prints the first note on one of them."""
    said = False
    for sample in samples:
        if not said and (text := note(sample)):
            cli.say(f"note: {text} (sample {sample.sample_id}, and perhaps later ones)")
            said = True
        yield sample
