"""Where metrics go: TensorBoard, the log, and a file of JSON lines."""

import json
from pathlib import Path

from vitar_jax.learning.metrics import Scalars
from vitar_jax.runtime.crash_safe import drop_tail, read_json_lines


class MetricsWriter:
    """clu's writers (log and TensorBoard) and a JSON line a step.

    Attributes:
      before: the lines that were there.
    """

    def __init__(self, directory: Path, step: int):
        """`step` is where the stage goes on; lines beyond it are of steps that will be made again."""
        from clu import metric_writers  # imports TensorFlow, which takes seconds

        directory.mkdir(parents=True, exist_ok=True)
        self._clu = metric_writers.create_default_writer(str(directory), asynchronous=False)
        path = directory / "metrics.jsonl"
        rows = read_json_lines(path, lambda row: (row["step"], row)) if path.exists() else ()
        self.before = [row for at, row in rows if at <= step]
        drop_tail(path, lambda line: json.loads(line)["step"] <= step)
        self._file = path.open("a")

    def write(self, step: int, scalars: Scalars) -> None:
        self._clu.write_scalars(step, scalars)
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._clu.close()
        self._file.close()
