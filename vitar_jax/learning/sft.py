"""Supervised fine-tuning on demonstrations, which a grain iterator reads."""

import dataclasses
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from jaxtyping import Array, Bool, Float, Int

from vitar_jax.data.pipeline import sft_batches
from vitar_jax.data.skipping import skipped_scalars
from vitar_jax.errors import ConfigError
from vitar_jax.learning.metrics import Scalars
from vitar_jax.learning.objective import OBJECTIVES, Batches, Counts, Feed, Metrics, Objective, TokenScores, masked_mean
from vitar_jax.learning.traced_masks import traced_masks
from vitar_jax.learning.train_state import TrainState
from vitar_jax.processing.packing import Batch


@dataclasses.dataclass(frozen=True)
class SFT(Objective):
    """Supervised fine-tuning.

    With `masks`, each example also learns masks of its trace (VRT, arXiv 2512.05091): the state at a `[SEG]` token prompts the
    mask decoder, and the mask is that of the object mentioned before it.

    Attributes:
      pack: Whether to fill each row with as many examples as fit. `batch_size` then counts rows.
      too_long: Treatment of an example that fits no row or has too many images. "error" ends the run. "skip" skips the
        example, like any other record that cannot be used.
    """

    pack: bool = False
    too_long: Literal["error", "skip"] = "skip"

    packs_rows = property(lambda self: self.pack)

    def __post_init__(self) -> None:
        if self.pack and self.masks is not None:
            raise ConfigError("objective.pack: masks take one example per row; set it to false")

    def loss(self, scores: TokenScores, batch: Batch, counts: Counts) -> tuple[Float[Array, ""], Metrics]:
        return sft_loss(scores.logprobs, batch.loss_mask, counts.tokens), {}

    def batches(self, feed: Feed) -> Batches:
        return SFTBatches(
            sft_batches(
                feed.sources,
                protocols=feed.protocols,
                default_protocol=feed.protocol,
                processor=feed.processor,
                limits=feed.limits,
                shape=feed.shape,
                seed=feed.seed,
                batch_size=None if self.pack else feed.batch_size,
                threads=feed.threads,
                too_long=self.too_long,
                max_skipped_share=feed.max_skipped_share,
                share=feed.share,
                masks=None if feed.shape.masks is None else partial(traced_masks, shape=feed.shape.masks),
            )
        )


OBJECTIVES["sft"] = SFT


def sft_loss(
    logprobs: Float[Array, "*B S"], loss_mask: Bool[Array, "*B S"], count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Returns the mean negative log-probability of policy tokens."""
    return -masked_mean(logprobs, loss_mask, count)


class SFTBatches:
    """Batches of a grain dataset whose iterator state counts skipped records and short batches (`data/pipeline.py`)."""

    def __init__(self, dataset: Iterable[Batch]):
        self._iterator: Any = iter(dataset)

    def next(self, state: TrainState) -> tuple[Batch, Scalars]:
        del state
        began = time.perf_counter()
        batch = next(self._iterator)
        seconds, reached = time.perf_counter() - began, self.get_state()
        return batch, {"timing_s/batch": seconds, **skipped_scalars(reached), "data/short_batches": reached["short_batches"]}

    def get_state(self) -> dict[str, int]:
        return self._iterator.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        self._iterator.set_state(state)
