"""The loop around a step that only counts: what is logged, and which state is kept as the best, also after a kill."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from vitar_jax.learning.checkpoint import Checkpointer
from vitar_jax.learning.loop import Callbacks, run_loop
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.train_state import TrainState

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
        return {"x": np.zeros(1)}, {"place": float(self.place), "timing_s/batch": 0.0} | even

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
            return TrainState(state.step + 1, state.model, None), {"loss": jnp.float32(state.step), "tokens": jnp.int32(10)}

        checkpointer = Checkpointer(directory)
        try:
            run_loop(
                TrainState(jnp.int32(0), jnp.zeros(2), None),  # type: ignore[arg-type]
                Batches(),
                step,
                steps=8,
                put=lambda batch: batch,  # type: ignore[arg-type]
                checkpointer=checkpointer,
                checkpoint_every=3,
                log_every=log_every,
                probe_every=1,
                callbacks=Callbacks(log, lambda state: self.kept.append(int(state.step)), look if probe else None),
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
    assert rows[3]["even"] == 2 and rows[6]["even"] == (4 + 6) / 2  # over the steps that have it
    assert rows[3]["perf/tokens_per_second"] == pytest.approx(10 / rows[3]["timing_s/step"])
    assert rows[3]["timing_s/update"] == rows[3]["timing_s/step"] - rows[3]["timing_s/batch"]
