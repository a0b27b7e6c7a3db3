"""An objective of a user's, in a file of their own, trains like ours."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.kit import micro, training
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.sft import SFT
from vitar_jax.learning.train_state import first_state
from vitar_jax.learning.train_step import make_train_step

THEIRS = '''
"""Likelihood of demonstrations whose every token weighs something."""

import dataclasses

import jax.numpy as jnp

from vitar_jax.learning.objective import Objective, masked_mean
from vitar_jax.learning.sft import SFT


@dataclasses.dataclass(frozen=True)
class Weighted(Objective):
    """Weights the log-probability of surprising tokens.

    Attributes:
      power: Of the surprise.
    """

    power: float = 0.0

    @property
    def extras(self):
        return ("surprise",)

    def annotate(self, batch, policy, reference):
        return batch.with_extras(surprise=-policy(batch))

    def loss(self, scores, batch, counts):
        weights = batch.extras["surprise"] ** self.power
        loss = -masked_mean(weights * scores.logprobs, batch.loss_mask, counts.tokens)
        return loss, {"weight_max": jnp.max(weights)}

    def batches(self, feed):
        return SFT().batches(feed)
'''


def their_objective(directory: Path, **keys: Any) -> Any:
    """The objective of a recipe whose stage names the file."""
    file = directory / "theirs.py"
    file.write_text(THEIRS)
    config = micro.get_config()
    config.stages.sft.objective = dict(name=f"{file}:Weighted", **keys)
    return Recipe.from_config(config).stages["sft"].objective


def step(objective: Any) -> tuple[Any, dict[str, float]]:
    """Weights and metrics after a step of plain gradient descent on two micro-batches."""
    optimizer = optax.sgd(1.0)
    train_step = make_train_step(objective, optimizer, jnp.asarray(training.BANNED), micro_batches=2)
    batch = training.make_batch(training.shape(2)).with_extras()
    state, metrics = train_step(first_state(training.copy(), optimizer), jax.tree.map(jnp.asarray, batch))
    return state.model, {name: float(value) for name, value in metrics.items()}


@pytest.mark.slow
def test_an_objective_of_a_users_trains_a_step(tmp_path: Path) -> None:
    """With power 0 it is SFT; with another power its annotation counts."""
    plain, plain_metrics = step(SFT())
    same, metrics = step(their_objective(tmp_path))
    assert metrics.pop("weight_max") == 1 and metrics == plain_metrics
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(plain), strict=True))
    other, metrics = step(their_objective(tmp_path, power=1.0))
    assert metrics["weight_max"] > 1 and metrics["loss"] > plain_metrics["loss"]
    assert not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True))
