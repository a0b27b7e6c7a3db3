"""Where metrics go: TensorBoard, the log, and a file of JSON lines."""

import json
from pathlib import Path

from vitar_jax.learning.metrics import Scalars


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
        self.before = [row for row in map(json.loads, _lines(path)) if row["step"] <= step]
        path.write_text("".join(json.dumps(row) + "\n" for row in self.before))
        self._file = path.open("a")

    def write(self, step: int, scalars: Scalars) -> None:
        self._clu.write_scalars(step, scalars)
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._clu.close()
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
