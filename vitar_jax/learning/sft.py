"""Supervised fine-tuning feeds the loop from a grain iterator of packed demonstrations."""

import time
from collections.abc import Iterable
from typing import Any

from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.train_state import TrainState
from vitar_jax.processing.packing import Batch


class SFTBatches:
    """Device batches of a grain dataset, whose states say how many examples were `skipped`."""

    def __init__(self, dataset: Iterable[Batch]):
        self._iterator: Any = iter(dataset)

    def next(self, state: TrainState) -> tuple[Batch, Scalars]:
        del state
        began = time.perf_counter()
        batch = next(self._iterator)
        return batch, {"timing_s/batch": time.perf_counter() - began, "data/skipped": self.get_state()["skipped"]}

    def get_state(self) -> dict[str, int]:
        return self._iterator.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        self._iterator.set_state(state)
