"""The static sizes of rollout."""

import dataclasses
import math
from typing import Literal

from vitar_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Static sizes of the rollout programs.

    Attributes:
      slots: Number of episodes played at a time.
      prefill_lengths: Lengths that prompts and observations are padded to. Longer ones are prefilled in several calls.
      prefill_rows: Number of prompts or observations per prefill call.
      chunk: Maximum number of decode steps per device call.
      decode_lengths: Numbers of cache positions, below `limits.tokens`, of which attention in decode may read only the first. A
        chunk takes the smallest that covers its longest slot, else reads all. Each compiles a program of its own. Without any,
        every token reads `limits.tokens` positions of each slot.
      draft_tokens: Maximum number of tokens that a decode step reads ahead of the one it samples. They are looked up in what
        was written before and kept where they equal the tokens that are sampled there, so that no token changes. Every step
        then computes `1 + draft_tokens` tokens per slot, which pays where a step takes as long for few tokens as for one: on an
        accelerator whose bandwidth limits decode, or with few slots. 0 means no drafts.
      quorum: Number of ended turns that makes decode return early.
      encode_batch: Number of images per vision call.
      follow_images: Whether the feature buffer of a prefill call follows the images in it. Each new size compiles programs. If
        False, the buffer has room for the most and largest images, so that nothing compiles after the warm-up.
      turn_masks: Maximum number of masks of a turn, in a family that makes masks; further `[SEG]` tokens have none. VRT-Bench
        asks for at most 10 masks in a reasoning and 6 in an answer; twice as many leave room for repeated mentions. Best a
        multiple of 8, since masks are decoded in blocks of up to 8.
      mask_rows: Number of turns per call that makes masks. Turns are decoded one after another on each data shard, so that
        memory does not grow with it.
      overlap: Whether the other slots decode while tools run. A slot then waits one more scheduling step for its tool. Gains
        nothing if tools and model share the same cores.
      workers: Number of threads that open images, run tools, process the images they return, and compute rewards.
      dtype: Type of weights, activations and cache.
      weights: Type of the decoder's projections, the embeddings and the head in episodes that training plays. If empty,
        `dtype`. "int8" has one scale per output channel (`models/int8.py`), so that decode reads half as much as with
        bfloat16. The sampler's log-probabilities then differ from the trainer's, so the loss must correct for them
        (`correction` of GRPO). The rest of the model keeps `dtype`, as do evaluations of checkpoints. It only saves time on
        accelerators, since CPUs convert the weights at every call.
      tensor: Number of devices that share one copy of the weights. Slots are sharded over the other devices of a process.
    """

    slots: int
    prefill_lengths: tuple[int, ...]
    prefill_rows: int = 8
    chunk: int = 32
    decode_lengths: tuple[int, ...] = ()
    draft_tokens: int = 0
    quorum: int = 8
    encode_batch: int = 8
    follow_images: bool = False
    turn_masks: int = 32
    mask_rows: int = 4
    overlap: bool = True
    workers: int = 4
    dtype: str = "float32"
    weights: Literal["", "int8"] = ""
    tensor: int = 1

    def __post_init__(self) -> None:
        if not self.prefill_lengths or min(self.prefill_lengths) < 1:
            raise ConfigError(f"rollout.prefill_lengths: got {self.prefill_lengths}, expected positive lengths")
        if min(self.decode_lengths, default=1) < 1:
            raise ConfigError(f"rollout.decode_lengths: got {self.decode_lengths}, expected positive lengths")
        if self.draft_tokens < 0:
            raise ConfigError(f"rollout.draft_tokens: got {self.draft_tokens}, expected at least 0")
        for name in ("slots", "prefill_rows", "chunk", "quorum", "encode_batch", "turn_masks", "mask_rows", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}: got {getattr(self, name)}, expected at least 1")

    @property
    def chunk_tokens(self) -> int:
        """Maximum number of tokens of a slot per device call of decode."""
        return self.chunk * (1 + self.draft_tokens)

    def reach(self, tokens: int, capacity: int) -> int | None:
        """Returns the number of cache positions that decode reads if no slot has more than `tokens`. None means all."""
        return min((length for length in self.decode_lengths if tokens <= length < capacity), default=None)

    def rows(self, shards: int) -> int:
        """Returns `prefill_rows`, rounded up to a multiple of the data shards."""
        return math.ceil(self.prefill_rows / shards) * shards

    def turns(self, shards: int) -> int:
        """Returns `mask_rows`, rounded up to a multiple of the data shards."""
        return math.ceil(self.mask_rows / shards) * shards
