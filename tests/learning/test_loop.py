"""The loop around a step that only counts: what is logged, which state is kept as the best, also after a kill, its stops."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit.processes import run as run_process
from vitar_jax.errors import CheckpointError, NonFiniteError
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.loop import Callbacks, Progress, own_state, resume, run_loop
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.train_state import TrainState
from vitar_jax.runtime.preemption import Preemption

FIRST = TrainState(jnp.int32(0), jnp.zeros(2), (), jnp.int32(0), jnp.int32(0))  # type: ignore[arg-type]
REWARDS = {1: 0.3, 2: 0.5, 3: None, 4: 0.2, 5: 0.5, 6: 0.4, 7: 0.9, 8: 0.1}  # of the probes; 3: they all failed


class Killed(Exception):
    """Stands for anything that ends a run."""


class Batches:
    """Numbers, every other one with a name of its own."""

    def __init__(self) -> None:
        self.place = 0

    def next(self, state: TrainState) -> tuple[dict[str, np.ndarray], Scalars]:
        self.place += 1
        even = {} if self.place % 2 else {"even": float(self.place)}
        return {"x": np.zeros(1)}, {"place": float(self.place), "timing_s/batch": 0.0, "data/skipped": 7.0 * self.place} | even

    def get_state(self) -> dict[str, Any]:
        return {"place": self.place}

    def set_state(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Run:
    """Eight steps with a probe after each; `kept` are the steps whose states were the best so far."""

    def __init__(self) -> None:
        self.rows: dict[int, Scalars] = {}
        self.kept: list[int] = []

    def train(self, directory: Path, *, stop_after: int = 0, probe: bool = True, log_every: int = 1) -> "Run":
        def log(step: int, scalars: Scalars) -> None:
            self.rows[step] = scalars
            if step == stop_after:
                raise Killed

        def look(state: TrainState) -> Scalars:
            reward = REWARDS[int(state.step)]
            return {} if reward is None else {"probe/reward/mean": reward}

        def step(state: Any, batch: Any) -> Any:
            zero = jnp.int32(0)
            metrics = {"loss": jnp.float32(state.step), "tokens": jnp.int32(10), "skipped": zero, "skipped_in_a_row": zero}
            return dataclasses.replace(state, step=state.step + 1), metrics

        checkpointer = Checkpointer(directory)
        try:
            state, progress = resume(FIRST, checkpointer)
            run_loop(
                state,
                Batches(),
                step,
                steps=8,
                put=lambda batch: batch,  # type: ignore[arg-type]
                checkpointer=checkpointer,
                checkpoint_every=3,
                log_every=log_every,
                probe_every=1,
                stop_after_skipped=3,
                callbacks=Callbacks(log, lambda state: self.kept.append(int(state.step)), look if probe else None),
                progress=progress,
            )
        finally:
            checkpointer.close()
        return self


def test_the_best_is_kept(tmp_path: Path) -> None:
    assert Run().train(tmp_path).kept == [1, 2, 7]


@pytest.mark.parametrize("stop_after, kept", [(5, [7]), (7, [7]), (2, [1, 2, 7])])
def test_after_a_kill_the_best_so_far_is_known(stop_after: int, kept: list[int], tmp_path: Path) -> None:
    """Steps since the last checkpoint, of step 3 or 6, are made again."""
    with pytest.raises(Killed):
        Run().train(tmp_path, stop_after=stop_after)
    assert Run().train(tmp_path).kept == kept


def test_names_and_means_of_what_is_logged(tmp_path: Path) -> None:
    rows = Run().train(tmp_path, probe=False, log_every=3).rows
    assert list(rows) == [3, 6, 8]
    assert rows[3]["actor/loss"] == 1 and rows[3]["place"] == 2
    assert rows[3]["data/skipped"] == 7 * 3  # a count
    assert rows[3]["even"] == 2 and rows[6]["even"] == (4 + 6) / 2  # over the steps that have it
    assert rows[3]["perf/tokens_per_second"] == pytest.approx(10 / rows[3]["timing_s/step"])
    assert rows[3]["timing_s/update"] == rows[3]["timing_s/step"] - rows[3]["timing_s/batch"]


# Saves in the background


@pytest.fixture
def slow_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint takes half a second to get its name."""
    rename = os.rename

    def slow(source: Any, target: Any, **options: Any) -> None:
        time.sleep(0.5)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", slow)


def train(checkpointer: Checkpointer, log: Callable[[int, Scalars], None], **callbacks: Any) -> None:
    """Saves after every third step."""
    run_loop(
        FIRST,
        Losses([1.0] * 8),
        train_step,
        steps=8,
        put=lambda batch: {name: jnp.asarray(value) for name, value in batch.items()},
        checkpointer=checkpointer,
        checkpoint_every=3,
        log_every=1,
        probe_every=0,
        stop_after_skipped=3,
        callbacks=Callbacks(log, lambda state: None, **callbacks),
    )


@pytest.mark.slow
@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, SystemExit])
def test_an_error_soon_after_a_checkpoint_does_not_abandon_it(
    error: type[BaseException], tmp_path: Path, slow_saves: None
) -> None:
    def log(step: int, scalars: Scalars) -> None:
        if step == 4:
            raise error

    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(error):
        train(checkpointer, log)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    checkpointer.close()


@pytest.mark.slow
def test_a_sigterm_soon_after_a_checkpoint_saves_once_more(tmp_path: Path, slow_saves: None) -> None:
    def log(step: int, scalars: Scalars) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpointer = Checkpointer(tmp_path)
    with Preemption() as preemption:
        train(checkpointer, log, stop=preemption)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
    checkpointer.close()


@pytest.mark.slow
def test_a_process_that_fails_soon_after_a_checkpoint_leaves_it_behind(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from tests.learning.test_loop import Checkpointer, train
rename = os.rename
os.rename = lambda *names, **options: (time.sleep(1), rename(*names, **options))
def log(step, scalars):
    if step == 4:
        raise ValueError("a bad record")
train(Checkpointer(Path({str(tmp_path)!r})), log)
"""
    failed = run_process(sys.executable, "-c", code)
    assert failed.returncode == 1 and "a bad record" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


@pytest.mark.parametrize("state", [{}, {"taken": 3}, 7])
def test_the_position_in_other_data_is_one_line(state: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match="step 0: cannot restore the position in the data"):
        run_loop(
            FIRST,
            Losses([]),
            train_step,
            steps=8,
            put=lambda batch: batch,
            checkpointer=checkpointer,
            checkpoint_every=3,
            log_every=1,
            probe_every=0,
            stop_after_skipped=3,
            callbacks=Callbacks(lambda step, scalars: None, lambda state: None),
            progress=Progress([state]),
        )
    checkpointer.close()


# Steps without an update


class Losses:
    """Batches that are the losses of their steps."""

    def __init__(self, losses: list[float]):
        self.losses, self.position = losses, 0

    def next(self, state: TrainState) -> tuple[Mapping[str, np.ndarray], Scalars]:
        self.position += 1
        return {"loss": np.float32(self.losses[self.position - 1])}, {}

    def get_state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
    """Counts as the real one does."""
    finite = jnp.isfinite(batch["loss"])
    in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    skipped = state.skipped + ~finite
    metrics = {
        "loss": batch["loss"],
        "grad_norm": batch["loss"],
        "skipped": skipped,
        "skipped_in_a_row": in_a_row,
        "tokens": jnp.int32(1),
    }
    return dataclasses.replace(state, step=state.step + 1, skipped=skipped, skipped_in_a_row=in_a_row), metrics


def run(losses: str, directory: Path, steps: int = 0) -> tuple[list[tuple[int, Scalars]], TrainState | None, str]:
    """What is logged, the last state, and the error. `x` stands for a loss that is not finite; three of them are too many."""
    logged: list[tuple[int, Scalars]] = []
    checkpointer = Checkpointer(directory)
    first, progress = resume(FIRST, checkpointer)
    state, message = None, ""
    try:
        state = run_loop(
            first,
            Losses([float("nan") if letter == "x" else 1.0 for letter in losses]),
            train_step,
            steps=steps or len(losses),
            put=lambda batch: {name: jnp.asarray(value) for name, value in batch.items()},
            checkpointer=checkpointer,
            checkpoint_every=2,
            log_every=2,
            probe_every=0,
            stop_after_skipped=3,
            callbacks=Callbacks(lambda step, scalars: logged.append((step, scalars)), lambda state: None),
            progress=progress,
        )
    except NonFiniteError as error:
        message = str(error)
    checkpointer.close()
    return logged, state, message


def test_skipped_steps_are_counted(tmp_path: Path) -> None:
    logged, state, message = run("1xx1x1", tmp_path)
    assert state is not None and not message
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (6, 3, 0)
    assert [(step, *(row[f"actor/{name}"] for name in ("skipped", "skipped_in_a_row"))) for step, row in logged] == [
        (2, 1, 1),
        (4, 2, 0),
        (6, 3, 0),
    ]


@pytest.mark.parametrize("losses, step", [("1xxx111111", 4), ("11xxx11111", 5), ("xxx", 3), ("x1x1x1xxx", 9)])
def test_too_many_in_a_row_stop_the_run(losses: str, step: int, tmp_path: Path) -> None:
    logged, _, message = run(losses, tmp_path)
    assert message.startswith(f"step {step}: loss nan and grad_norm nan; 3 steps in a row were skipped")
    assert all(logged_step <= step + 1 for logged_step, _ in logged)


def test_a_restart_goes_on_counting(tmp_path: Path) -> None:
    """The last two steps before it made no update, nor does the first one after it."""
    assert not run("11xxx111", tmp_path, steps=4)[2]
    assert run("11xxx111", tmp_path)[2].startswith("step 5: ")


@pytest.mark.parametrize(
    "read, processes, index, expected",
    [([6, 4], 2, 0, 6), ([6, 4], 2, 1, 4), ([6, 4], 1, 0, 10), ([6, 6], 4, 3, 3), ([6, 5], 2, 1, 5), ([6, 5], 4, 0, 3)],
)
def test_another_number_of_processes_goes_on_after_what_all_had_read(
    read: list[int], processes: int, index: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where groups are replaced, or rows are filled, one process reads more than another."""
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    assert own_state([{"taken": count} for count in read]) == {"taken": expected}
