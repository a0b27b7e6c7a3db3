"""Steps of a recipe's stage, run one at a time and timed by phase."""

import time

import jax
import jax.numpy as jnp

from vitar_jax.experiment.trainer import Run
from vitar_jax.learning.sft import SFT
from vitar_jax.parallel.mesh import put_batch


class StageSteps:
    """A stage from its initial weights, run one step at a time like in the trainer, but without logs and checkpoints.

    Attributes:
      rows: Token ids [rows, S] of the last step's batch.
      spent: Seconds of each step, by phase.
    """

    def __init__(self, run: Run, name: str):
        self.run, self.stage = run, run.recipe.stages[name]
        self.program = run.programs.train(self.stage, jnp.asarray(run.banned)).program
        self.state = run.initial_state(self.stage)
        self.batches = run.batches(name, self.stage, run.programs.batch_shape(self.stage))
        self.spent: list[dict[str, float]] = []

    def step(self) -> tuple[float, float]:
        """Runs one step and returns the loss and the norm of the gradient before clipping."""
        batch, scalars = self.batches.next(self.state)
        fed = time.perf_counter()
        self.state, metrics = self.program(self.state, put_batch(batch, self.run.mesh))
        jax.block_until_ready(self.state)
        spent = {key.removeprefix("timing_s/"): value for key, value in scalars.items() if key.startswith("timing_s/")}
        if isinstance(self.stage.objective, SFT):
            spent = {"input": spent["batch"]}
        self.spent.append(spent | {"update": time.perf_counter() - fed})
        self.rows = batch.token_ids.reshape(-1, batch.token_ids.shape[-1])
        return float(metrics["loss"]), float(metrics["grad_norm"])
