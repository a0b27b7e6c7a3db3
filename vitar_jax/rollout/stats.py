"""What a rollout did and where its time went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


class Meter:
    """Counts of an engine since the last `reset`.

    Attributes:
      episodes: that have ended.
      sampled: tokens drawn; `slot_steps` are the places there were for them, slots by steps of decoding.
      read: tokens of prompts, observations and images that were read; `saved` of them other members of a group did not
        have to read again.
      seconds: by kind of work (decode, extend, vision, tools: waiting for them). The device works on while the host goes
        ahead, so that these are true only where `reset` was told to block.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, *, blocking: bool = False) -> None:
        """Begins anew. `blocking` waits for the device after each piece of work."""
        self.episodes = self.sampled = self.slot_steps = self.read = self.saved = 0
        self._spent: dict[str, float] = defaultdict(float)
        self._blocking = blocking
        self._began = time.perf_counter()

    @contextmanager
    def time(self, kind: str) -> Iterator[list[Any]]:
        """Counts the time of a block as `kind`; the block puts the arrays it makes into the list that it is given."""
        began = time.perf_counter()
        made: list[Any] = []
        yield made
        if self._blocking:
            jax.block_until_ready(made)
        self._spent[kind] += time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """By kind of work; `host` is what is left of the time since the reset."""
        spent = {kind: self._spent[kind] for kind in ("decode", "extend", "vision", "tools")}
        return spent | {"host": time.perf_counter() - self._began - sum(spent.values())}

    @property
    def occupancy(self) -> float:
        """Share of the places for tokens that were used."""
        return self.sampled / max(self.slot_steps, 1)
