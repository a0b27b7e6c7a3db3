"""The static sizes of rollout."""

import dataclasses
import math

from vitar_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Static sizes of the rollout programs.

    Attributes:
      slots: episodes played at a time.
      prefill_lengths: sizes that prompts and observations are padded up to; longer ones go in pieces.
      prefill_rows: prompts and observations that one call reads.
      chunk: most tokens sampled between two looks of the host.
      quorum: turns that end before the host looks earlier.
      encode_batch: images encoded by one call.
      overlap: whether others write while tools run, which costs the slots that wait for them one look. Where tools and model
        share the same cores there is nothing to win.
      workers: threads that open images, run tools, process what they return, and compute rewards.
      dtype: type of weights, activations and cache in rollout.
      tensor: devices that share one copy of the weights; slots are spread over the rest of a process's devices.
    """

    slots: int
    prefill_lengths: tuple[int, ...]
    prefill_rows: int = 8
    chunk: int = 32
    quorum: int = 8
    encode_batch: int = 8
    overlap: bool = True
    workers: int = 4
    dtype: str = "float32"
    tensor: int = 1

    def __post_init__(self) -> None:
        if not self.prefill_lengths or min(self.prefill_lengths) < 1:
            raise ConfigError(f"rollout: prefill_lengths {self.prefill_lengths} must be positive")
        for name in ("slots", "prefill_rows", "chunk", "quorum", "encode_batch", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout: {name} {getattr(self, name)} must be positive")

    def rows(self, shards: int) -> int:
        """`prefill_rows`, rounded up to as many on each data shard."""
        return math.ceil(self.prefill_rows / shards) * shards
