"""The loop of a stage, over a state without a model: when it stops, and what it logs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitar_jax.errors import NonFiniteError
from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.loop import Callbacks, Scalars, run_loop
from vitar_jax.learning.train_state import TrainState


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
    metrics = {"loss": batch["loss"], "grad_norm": batch["loss"], "skipped": skipped, "skipped_in_a_row": in_a_row}
    return dataclasses.replace(state, step=state.step + 1, skipped=skipped, skipped_in_a_row=in_a_row), metrics


def run(losses: str, directory: Path, steps: int = 0) -> tuple[list[tuple[int, Scalars]], TrainState | None, str]:
    """What is logged, the last state, and the error. `x` stands for a loss that is not finite; three of them are too many."""
    model: Any = jnp.zeros(2)
    first = TrainState(jnp.int32(0), model, (), jnp.int32(0), jnp.int32(0))
    logged: list[tuple[int, Scalars]] = []
    checkpointer = Checkpointer(directory)
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
            callbacks=Callbacks(lambda step, scalars: logged.append((step, scalars)), lambda step, scalars: None),
        )
    except NonFiniteError as error:
        message = str(error)
    checkpointer.close()
    return logged, state, message


def test_skipped_steps_are_counted(tmp_path: Path) -> None:
    logged, state, message = run("1xx1x1", tmp_path)
    assert state is not None and not message
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (6, 3, 0)
    assert [(step, row["skipped"], row["skipped_in_a_row"]) for step, row in logged] == [(2, 1, 1), (4, 2, 0), (6, 3, 0)]


@pytest.mark.parametrize("losses, step", [("1xxx111111", 4), ("11xxx11111", 5), ("xxx", 3), ("x1x1x1xxx", 9)])
def test_too_many_in_a_row_stop_the_run(losses: str, step: int, tmp_path: Path) -> None:
    logged, _, message = run(losses, tmp_path)
    assert message.startswith(f"step {step}: loss nan and grad_norm nan; 3 steps in a row made no update")
    assert all(logged_step <= step + 1 for logged_step, _ in logged)


def test_a_restart_goes_on_counting(tmp_path: Path) -> None:
    """The last two steps before it made no update, nor does the first one after it."""
    assert not run("11xxx111", tmp_path, steps=4)[2]
    assert run("11xxx111", tmp_path)[2].startswith("step 5: ")
