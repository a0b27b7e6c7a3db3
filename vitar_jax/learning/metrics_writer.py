"""Writes metrics to TensorBoard, to the log and to a JSON Lines file."""

import json
import sys
from pathlib import Path
from types import ModuleType

from vitar_jax.learning.metrics import Scalars
from vitar_jax.runtime.crash_safe import drop_tail, read_json_lines


class MetricsWriter:
    """A writer of scalars to clu's writers (log and TensorBoard), with one JSON line per step.

    Args:
      step: Step that the stage starts or resumes from. Later lines of the file are dropped, as their steps run again.

    Attributes:
      before: Rows of the file up to `step`.

    Raises:
      DataError: If a line of the file is damaged.
    """

    def __init__(self, directory: Path, step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._clu = _clu_writers().create_default_writer(str(directory), asynchronous=False)
        path = directory / "metrics.jsonl"
        rows = read_json_lines(path, lambda row: (row["step"] <= step, row)) if path.exists() else ()
        self.before = [row for made, row in rows if made]
        drop_tail(path, lambda line: json.loads(line)["step"] <= step)
        self._file = path.open("a")

    def write(self, step: int, scalars: Scalars) -> None:
        self._clu.write_scalars(step, scalars)
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._clu.close()
        self._file.close()


class _SummaryWriter:
    """Writes scalars with TensorBoard's own writer. Replaces clu's writer, which needs TensorFlow."""

    def __init__(self, directory: str):
        from tensorboard import summary
        from tensorboard.compat import tensorflow_stub
        from tensorboard.summary.writer import event_file_writer

        event_file_writer.tf = tensorflow_stub  # otherwise it imports TensorFlow, if installed
        self._writer = summary.Writer(directory)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _clu_writers() -> ModuleType:
    """Imports clu's writers without TensorFlow, which takes 3.5 seconds to import and which only its summary writer needs."""
    stand_in = ModuleType("clu.metric_writers.summary_writer")
    setattr(stand_in, "SummaryWriter", _SummaryWriter)  # noqa: B010
    sys.modules.setdefault(stand_in.__name__, stand_in)
    from clu import metric_writers

    return metric_writers
