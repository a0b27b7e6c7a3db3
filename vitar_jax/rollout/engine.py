"""The host side of rollout: everything that the episodes of a process share, except weights."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.episodes.episode import Limits
from vitar_jax.processing.banned import fingerprint
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.drafts import WrittenTexts
from vitar_jax.rollout.prefill import Prefiller
from vitar_jax.rollout.stats import RolloutStats


class Engine:
    """The processor, limits, threads and counters that the schedulers of one process share. Holds no weights.

    Args:
      limits: Limits of the episodes; `limits.tokens` is the capacity of a slot.
      banned: bool [V], ids that are never sampled.
      matmul_precision: An argument of `jax.default_matmul_precision`. If None, the caller's setting applies.

    Attributes:
      pool: Threads that begin episodes and execute actions. Results do not depend on their number or order.
      stats: Counts and times of what was played.
      written: Texts that drafts come from.
    """

    def __init__(
        self,
        config: RolloutConfig,
        processor: Processor,
        limits: Limits,
        banned: np.ndarray,
        *,
        matmul_precision: str | None = None,
    ):
        self.config = config
        self.processor = processor
        self.limits = limits
        self.banned = jnp.asarray(banned)
        self.banned_sha256 = fingerprint(banned)
        self.pool = ThreadPoolExecutor(config.workers)
        self.stats = RolloutStats()
        self.written = WrittenTexts()
        self.prefiller = Prefiller(config, processor, limits, self.stats)
        self._matmul_precision = matmul_precision

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager that sets the precision of matrix products."""
        if self._matmul_precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self._matmul_precision)
