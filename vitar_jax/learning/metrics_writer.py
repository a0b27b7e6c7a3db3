"""Writes metrics to TensorBoard, to the log and to a JSON Lines file."""

import json
from pathlib import Path

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
        from clu import metric_writers  # imports TensorFlow, which takes seconds

        directory.mkdir(parents=True, exist_ok=True)
        self._clu = metric_writers.create_default_writer(str(directory), asynchronous=False)
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
