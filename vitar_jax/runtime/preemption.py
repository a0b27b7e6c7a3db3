"""A machine that is to be taken away says so by SIGTERM some time before."""

import itertools
import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Hears of a SIGTERM to any process of a run inside a `with` block, in the main thread.

    Attributes:
      requested: the processes have agreed to stop.
    """

    requested = False

    def __init__(self) -> None:
        self._signalled = False
        self._asked = itertools.count()

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:  # among several, JAX listens since `distributed.start`
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def __call__(self) -> bool:
        """Whether to stop now: the same answer in every process, all of which ask equally often."""
        if jax.process_count() > 1:
            self.requested |= multihost_utils.reached_preemption_sync_point(next(self._asked))
        else:
            self.requested = self._signalled
        return self.requested

    def _note(self, *_: object) -> None:
        self._signalled = True
