"""Trains the micro recipe and ends before it is finished: `python -m tests.kit.endings WORKDIR COMPILATIONS ENDING`."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from tests.kit import micro
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.experiment.workdir import open_workdir
from vitar_jax.learning.sft import SFTBatches
from vitar_jax.rollout.scheduler import Scheduler


def start(workdir: Path, compilations: str) -> Run:
    """Returns a new run in a directory, as its entry point makes it, except for the log."""
    jax.config.update("jax_compilation_cache_dir", compilations)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = micro.get_config()
    # Covers everything that a restart must restore, including the reference, the samples drawn as replacements and the episodes
    # that a step replays, for which samples return. Random weights earn no rewards, so only the entropy term moves them.
    config.stages.sft.log_every = 2
    config.stages.grpo.objective.update(
        entropy_coefficient=0.1, kl_coefficient=0.1, old_logprobs="trainer", epochs=2, refills=2
    )
    config.stages.grpo.objective.experts = dict(replay="newest", searches=1)
    config.stages.grpo.sources.look.options.length = 8
    # Three micro-batches of one row on each of two data shards, which short episodes do not fill.
    config.mesh = dict(fsdp=2, tensor=4)
    config.stages.grpo.objective.packed = True
    config.stages.grpo.update(micro_rows=1, tokens=208, policy_tokens=112)
    open_workdir(config, workdir)
    return Run(Recipe.from_config(config), workdir)


def end(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def while_saving() -> None:
    """Kills the run when the first checkpoint of SFT (step 2) is written but does not have its final name yet."""
    rename = os.rename

    def fatal(source: Any, target: Any, **options: Any) -> None:
        if Path(target).parts[-3:] == ("sft", "checkpoints", "2"):
            end(signal.SIGKILL)
        rename(source, target, **options)

    os.rename = fatal


def while_learning() -> None:
    """Asks the run to stop in the third step of SFT."""
    read = SFTBatches.next

    def asked(self: SFTBatches, state: Any) -> Any:
        if int(state.step) == 2:  # the warm-up has only one step
            end(signal.SIGTERM)
        return read(self, state)

    SFTBatches.next = asked


def while_playing() -> None:
    """Kills the run when an episode of GRPO has ended, after the checkpoint of step 2."""
    play, checkpoint = Scheduler.play, Path(sys.argv[1], "grpo", "checkpoints", "2")

    def fatal(self: Scheduler, *arguments: Any) -> Iterator[Any]:
        for episode in play(self, *arguments):
            if checkpoint.exists():
                end(signal.SIGKILL)
            yield episode

    Scheduler.play = fatal


ENDINGS: dict[str, Callable[[], None]] = {
    "saving": while_saving,
    "learning": while_learning,
    "playing": while_playing,
}

if __name__ == "__main__":
    ENDINGS[sys.argv[3]]()
    start(Path(sys.argv[1]), sys.argv[2]).train()
