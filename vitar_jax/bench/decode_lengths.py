"""Benchmark of decode in a large cache of which little is live, against decode in a cache of the live part's size."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.bench.cases import CASES
from vitar_jax.bench.pairs import Pair, Row, check_agreement, run_pair
from vitar_jax.models.registry import random_model
from vitar_jax.rollout import sampler
from vitar_jax.rollout.sampling import SamplingState, sampling_arrays
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

_TARGET = 1 / 1.3  # a token costs at most 1.3 times as much
_STEPS = 32


def measure(rounds: int, say: Callable[[str], None]) -> Row:
    """Times a chunk of tokens by the 10m model in 16 slots of 4,096 positions, of which 512 are live."""
    config = CASES["10m"].config
    weights = rollout_weights(jax.jit(lambda: random_model(config))(), dtype=config.dtype)
    pair, error = decode_pair(weights, "10m", slots=16, capacity=4096, live=512, steps=_STEPS)
    say(f"{pair.name}: log-probabilities agree to {error:.1e}")
    return run_pair(pair, rounds)


def decode_pair(
    weights: RolloutWeights, size: str, *, slots: int, capacity: int, live: int, steps: int
) -> tuple[Pair, float]:
    """Returns the pair, and the relative difference of the log-probabilities that both sides record.

    Raises:
      Disagreement: If they differ.
    """
    ours = Chunk(weights, slots, capacity, live, steps, reach=live)
    peer = Chunk(weights, slots, live, live, steps, reach=None)
    error = check_agreement("decode lengths", ours(), peer())
    name = f"decode, {live} of {capacity} live"
    return Pair(name, size, ours, peer, target=_TARGET, peer_settings=f"ours, capacity {live}"), error


class Chunk:
    """Decodes the same positions of all slots again and again. Returns the log-probabilities.

    Attributes:
      state: The state after the last call.
    """

    def __init__(self, weights: RolloutWeights, slots: int, capacity: int, live: int, steps: int, reach: int | None = None):
        state: Any = sampler.create_state(weights, slots, capacity)
        self._sampling = SamplingState(**sampling_arrays(slots), banned=jnp.zeros(state.logits.shape[1], bool))
        self.state, self._weights = dataclasses.replace(state, done=jnp.zeros(slots, bool)), weights
        self._start, self._budgets = np.full(slots, live - steps, np.int32), np.full(slots, steps + 1, np.int32)
        self._options: dict[str, Any] = {"steps": steps, "reach": reach}

    def __call__(self) -> np.ndarray:
        state = dataclasses.replace(self.state, cache=dataclasses.replace(self.state.cache, lengths=self._start))
        quorum = np.int32(len(self._start))
        self.state, _, logprobs, _ = sampler.decode(
            self._weights, state, self._sampling, self._budgets, quorum, **self._options
        )
        return np.asarray(logprobs)
