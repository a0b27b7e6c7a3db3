"""The log of a stage: metrics files, warnings and a progress bar."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from absl import logging

from vitar_jax.experiment.recipe import StageConfig
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.metrics_writer import MetricsWriter
from vitar_jax.runtime import cli
from vitar_jax.runtime.distributed import is_main
from vitar_jax.runtime.progress import progress_bar

_ON_THE_BAR = {"actor/loss": "loss", "reward/mean": "reward", "probe/reward/mean": "probe"}  # what fits in 80 columns


class StageLog:
    """The log of a stage's steps. Only the main process writes it.

    Args:
      start: Step that the stage starts or resumes from. The objective's alarms first read the steps logged before it.
      more: Function from a step and its scalars to further scalars.
    """

    def __init__(self, name: str, stage: StageConfig, directory: Path, start: int, *, more: Callable[[int, Scalars], Scalars]):
        self._name, self._more = name, more
        self._watch = stage.objective.watch()
        self._writer = MetricsWriter(directory, start) if is_main() else None
        for row in self._writer.before if self._writer else ():
            self._watch(row)
        self._bar = progress_bar(name, unit="step", total=stage.steps, initial=start)

    def __enter__(self) -> "StageLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, scalars: Scalars) -> None:
        """Writes the scalars of a step, warns of the alarms that the objective raises for them, and advances the bar."""
        if self._writer is None:
            return
        scalars = scalars | self._more(step, scalars)
        self._writer.write(step, scalars)
        for line in self._watch({"step": step} | scalars):
            self._bar.clear()
            warn(f"{self._name}, step {step}: {line}")
        shown = {word: f"{scalars[key]:.3f}" for key, word in _ON_THE_BAR.items() if key in scalars}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)


def warn(line: str) -> None:
    """Writes a warning to the log and to the terminal."""
    logging.warning("%s", line)
    cli.say(line)
