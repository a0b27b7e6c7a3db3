"""Supervised fine-tuning feeds the loop from a grain iterator of packed demonstrations."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.train_state import TrainState


class SFTBatches:
    """Device batches of a grain dataset."""

    def __init__(self, dataset: Iterable[Mapping[str, np.ndarray]]):
        self._iterator: Any = iter(dataset)

    def next(self, state: TrainState) -> tuple[Mapping[str, np.ndarray], Scalars]:
        del state
        return next(self._iterator), {}

    def get_state(self) -> dict[str, Any]:
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._iterator.set_state(state)
