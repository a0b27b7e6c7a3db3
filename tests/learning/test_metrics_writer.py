"""The file of metrics: what a restart keeps of it. What TensorBoard reads."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat import tensorflow_stub
from tensorboard.util.tensor_util import make_ndarray

from tests.kit.processes import run, run_code
from vitar_jax.errors import DataError
from vitar_jax.learning.metrics_writer import MetricsWriter


def lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# What docs/training.md says of W&B, without the network.
TRACKED = """
import sys
import wandb
wandb.init(project="mine", sync_tensorboard=True, mode="offline", dir=sys.argv[1])
from pathlib import Path
from vitar_jax.learning.metrics_writer import MetricsWriter
writer = MetricsWriter(Path(sys.argv[1], "run"), 0)
for step in (1, 2, 3):
    writer.write(step, {"actor/loss": step / 8})
writer.close()
wandb.finish()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    writer = MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"actor/loss": step / 7})
    writer.close()
    return tmp_path


def test_steps_that_are_made_again_are_written_once(directory: Path) -> None:
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "actor')  # a kill cut it short
    writer = MetricsWriter(directory, 2)
    assert writer.before == [{"step": 1, "actor/loss": 1 / 7}, {"step": 2, "actor/loss": 2 / 7}]
    writer.write(3, {"actor/loss": 5.0})
    writer.close()
    assert [row["step"] for row in lines(directory)] == [1, 2, 3] and lines(directory)[2]["actor/loss"] == 5


def test_a_damaged_line_is_named(directory: Path) -> None:
    path = directory / "metrics.jsonl"
    path.write_text('{"step": 1}\n[1]\n' + path.read_text())
    with pytest.raises(DataError, match="metrics.jsonl:2: is damaged"):
        MetricsWriter(directory, 9)


def test_tensorboard_reads_every_scalar_of_every_start(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file_loader, "tf", tensorflow_stub)  # or it loads TensorFlow, where that is installed
    writer = MetricsWriter(directory, 3)
    writer.write(4, {"actor/loss": 0.25, "timing_s/update": 2})
    writer.close()
    loaders = [event_file_loader.EventFileLoader(str(file)) for file in sorted(directory.glob("*.tfevents.*"))]
    values = [(event.step, value) for loader in loaders for event in loader.Load() for value in event.summary.value]
    assert {value.metadata.plugin_data.plugin_name for _, value in values} == {"scalars"}
    found = [(step, value.tag, float(make_ndarray(value.tensor))) for step, value in values]
    losses = [(step, "actor/loss", pytest.approx(step / 7)) for step in (1, 2, 3)]
    assert found == [*losses, (4, "actor/loss", 0.25), (4, "timing_s/update", 2)]


@pytest.mark.slow
def test_writing_needs_no_tensorflow(tmp_path: Path) -> None:
    """Nor loads it where it is installed: it takes seconds."""
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemError('{name} is loaded')")
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from vitar_jax.learning.metrics_writer import MetricsWriter
writer = MetricsWriter(Path(sys.argv[1]), 0)
writer.write(1, {"actor/loss": 0.5})
writer.close()
"""
    run_code(code, str(tmp_path))
    assert len(list(tmp_path.glob("*.tfevents.*"))) == 1


@pytest.mark.slow
def test_wandb_follows_the_metrics(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not required, also not by tests")
    done = run(sys.executable, "-c", TRACKED, str(tmp_path))
    summary = done.stderr.partition("Run summary:")[2].split()
    assert done.returncode == 0, done.stderr
    assert summary[summary.index("actor/loss") + 1] == "0.375" and summary[summary.index("global_step") + 1] == "3"
