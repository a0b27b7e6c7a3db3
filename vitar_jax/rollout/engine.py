"""The host side of rollout: what all episodes of a process share, whatever the weights they are played with."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.processing.banned import fingerprint
from vitar_jax.processing.processor import Processor
from vitar_jax.rollout.config import RolloutConfig
from vitar_jax.rollout.prefill import Prefiller
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.stats import RolloutStats
from vitar_jax.rollout.weights import RolloutWeights


class Engine:
    """Plays episodes with the weights it is given; holds no weights of its own.

    Args:
      limits: The limits of the episodes; `limits.tokens` is the capacity of a slot.
      banned: bool [V], ids that are never sampled.
      matmul_precision: A name that `jax.default_matmul_precision` takes. If None, the caller's setting applies.

    Attributes:
      pool: Threads that begin episodes and act on turns. Results do not depend on their number or order.
      stats: What was played, and where the time went.
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
        self.prefiller = Prefiller(config, processor, limits, self.stats)
        self._matmul_precision = matmul_precision

    def start(self, weights: RolloutWeights) -> Scheduler:
        """Allocates a KV cache for weights; episodes are submitted to the scheduler and played step by step."""
        return Scheduler(self, weights)

    def play(self, weights: RolloutWeights, groups: Iterable[Sequence[Episode]]) -> Iterator[Episode]:
        """Plays groups on a KV cache of their own; see `Scheduler.play`."""
        return self.start(weights).play(groups)

    def warm_up(self, weights: RolloutWeights, group_sizes: Sequence[int] = (1,)) -> None:
        """Compiles every program that any episode can need."""
        self.start(weights).warm_up(group_sizes)

    def precision(self) -> contextlib.AbstractContextManager[None]:
        """The precision that matrix products have while this is entered."""
        if self._matmul_precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self._matmul_precision)
