"""Preemption notices: clusters send SIGTERM some time before they take a machine away."""

import itertools
import os
import signal
from collections.abc import Mapping

import jax
from jax.experimental import multihost_utils

from vitar_jax.errors import ConfigError


class Preemption:
    """A detector of a SIGTERM to any process of a run, for a `with` block in the main thread.

    Attributes:
      requested: Whether the processes have agreed to stop.
    """

    requested = False

    def __init__(self) -> None:
        self._signalled = False
        self._sync_points = itertools.count()

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:  # with several processes, JAX handles SIGTERM since `distributed.start`
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def __call__(self) -> bool:
        """Returns whether to stop now. All processes must call it the same number of times, and all get the same answer."""
        if jax.process_count() > 1:
            self.requested |= multihost_utils.reached_preemption_sync_point(next(self._sync_points))
        else:
            self.requested = self._signalled
        return self.requested

    def _note(self, *_: object) -> None:
        self._signalled = True


def exit_status(environ: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status of a run that stopped after a SIGTERM: `VITAR_STOPPED_STATUS` (default: 0).

    Kubernetes takes status 0 for a completed run and does not restart it, so `launch/gke.sh` sets another one.

    Raises:
      ConfigError: If the variable is not a number from 0 to 255.
    """
    status = environ.get("VITAR_STOPPED_STATUS", "0")
    if not (status.isdecimal() and int(status) < 256):
        raise ConfigError(f"VITAR_STOPPED_STATUS={status}: expected a number from 0 to 255")
    return int(status)
