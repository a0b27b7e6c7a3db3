"""Counts and times of a rollout."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np


class RolloutStats:
    """Counts of an engine since the last `reset`.

    Attributes:
      episodes: Number of finished episodes.
      sampled: Number of sampled tokens.
      passes: Number of decode steps.
      accepted: Number of sampled tokens that a draft had foreseen, so that no step of their own was needed.
      slot_steps: Slots times decode steps, the upper bound of `sampled - accepted`.
      prefilled: Number of prefilled tokens: of prompts, observations and images.
      shared: Number of tokens that members of a group took from the prefill of another.
      masks: Number of masks made for `[SEG]` tokens.
      masks_missing: Number of `[SEG]` tokens without a mask: past the maximum of a turn, where a turn's budget ended, or of a
        sample without an image.
      seconds: Time by kind of work: decode, prefill, vision, masks (if there are any), tools (waiting for them), host. The
        device works asynchronously, so the split is accurate only after `reset(blocking=True)`.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, *, blocking: bool = False) -> None:
        """Sets all counts to 0. With `blocking`, each piece of work waits for the device."""
        self.episodes = self.sampled = self.passes = self.accepted = self.slot_steps = self.prefilled = self.shared = 0
        self.masks = self.masks_missing = 0
        self._spent: dict[str, float] = defaultdict(float)
        self._blocking = blocking
        self._began = time.perf_counter()

    def decoded(self, counts: np.ndarray, steps: np.ndarray) -> None:
        """Adds a device call in which each slot sampled `counts` tokens in `steps` decode steps."""
        self.sampled += int(counts.sum())
        self.accepted += int((counts - steps).sum())
        self.passes += int(steps.max())
        self.slot_steps += len(steps) * int(steps.max())

    @contextmanager
    def time(self, kind: str) -> Iterator[list[Any]]:
        """Adds the time of a block to `kind`; the block appends the arrays it makes to the yielded list."""
        began = time.perf_counter()
        made: list[Any] = []
        yield made
        if self._blocking:
            jax.block_until_ready(made)
        self._spent[kind] += time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by kind of work; `host` is the rest of the time since the reset."""
        kinds = ("decode", "prefill", "vision", *(["masks"] if "masks" in self._spent else []), "tools")
        spent = {kind: self._spent[kind] for kind in kinds}
        return spent | {"host": time.perf_counter() - self._began - sum(spent.values())}

    @property
    def occupancy(self) -> float:
        """Fraction of slot steps that sampled a token."""
        return (self.sampled - self.accepted) / max(self.slot_steps, 1)
