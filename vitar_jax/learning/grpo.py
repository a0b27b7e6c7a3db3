"""The objective of GRPO and its family, over one or two streams."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitar_jax.data.interventions import Given, find_change
from vitar_jax.data.pipeline import sample_stream
from vitar_jax.data.skipping import Skips
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.learning.counterfactual import CounterfactualConfig
from vitar_jax.learning.experts import ExpertsConfig, ExpertStream, Searches
from vitar_jax.learning.grpo_batches import GRPOBatches
from vitar_jax.learning.grpo_loss import GRPOLossConfig, grpo_loss, refuse, sampler_gap
from vitar_jax.learning.mixtures import StreamCounts, Streams, count_streams, mixed_loss, stream_metrics
from vitar_jax.learning.objective import (
    OBJECTIVES,
    Batches,
    Counts,
    Feed,
    LogprobsOf,
    Metrics,
    Objective,
    Passes,
    TokenScores,
    count_batch,
)
from vitar_jax.learning.replay import Replay
from vitar_jax.learning.rewards import Rewards
from vitar_jax.learning.token_selection import draws_of, select_tokens, uncertain_tokens
from vitar_jax.processing.packing import Batch

_LENDERS = 512  # samples of the stage that may lend their images to others


@dataclasses.dataclass(frozen=True)
class GRPO(GRPOLossConfig, Objective):
    """GRPO and its family: plays a group of episodes per sample and learns from their rewards.

    `GRPOLossConfig` has the keys of the loss.

    With `masks`, the policy's episode with the highest advantage in each group also learns the masks of its answer, as in VRT
    (arXiv 2512.05091). Each of them learns the gold mask that it is paired with, one to one by IoU. The published code instead
    compares the union of the gold masks with each pixel's maximum over the logits of all masks. It sets the logits of the
    reasoning's masks to 0, so that no maximum is below 0.

    Attributes:
      group_size: Number of episodes per sample. `batch_size` counts samples.
      temperature, top_p: Sampling of tokens.
      epochs, minibatches: Each rollout is used for `epochs` passes of `minibatches` optimizer steps. An episode stays in its
        minibatch, which is a share of the rows of every data shard.
      packed: Whether several episodes share a row where they fit, so that a step costs the episodes' tokens and not
        `limits.tokens` for each. An episode stays in its minibatch. Micro-batches that stay empty are skipped, so this needs
        `micro_rows` and an attention back end that takes segments. Losses and gradients differ by rounding alone. Larger
        `tokens`, `policy_tokens` and `row_images` of the stage let more episodes share a row.
      refills: Maximum number of times that groups of equal rewards are replaced by groups of further samples (DAPO's dynamic
        sampling; verl's recipe uses 10). Each process replaces its own groups and keeps those left after the last refill. With
        experts, a group is replaced if neither stream has an advantage.
      mask_overlong: Whether to mask the loss of cut-off episodes (DAPO). They still count in their group's advantages.
      overlong_penalty: Weight of a reward part for an episode's number of policy tokens: 0 up to `overlong_start`, -1 from
        `overlong_end` on, linear in between (DAPO, equation 13).
      scale_advantages: Whether to divide by the group's std plus `epsilon` (verl 1e-6, TRL 1e-4). `ddof` is 1 in both.
      batch_std: Whether that std is of all rewards of the batch, over all processes (`scale_rewards="batch"` of TRL).
      experts: Episodes of an expert to learn from, beside the policy's own. `mask_overlong` and `overlong_penalty` are of the
        policy's episodes alone.
      counterfactual: Further members of each group that are played without the image. An episode is then paid what it earned
        above them (`learning/counterfactual.py`). With `refills`, a group in which no episode earned more is replaced.
    """

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    epochs: int = 1
    minibatches: int = 1
    packed: bool = False
    refills: int = 0
    mask_overlong: bool = False
    overlong_penalty: float = 0.0
    overlong_start: int = 0
    overlong_end: int = 0
    scale_advantages: bool = True
    batch_std: bool = False
    epsilon: float = 1e-6
    ddof: Literal[0, 1] = 1
    experts: ExpertsConfig | None = None
    counterfactual: CounterfactualConfig | None = None

    image_sets = property(lambda self: 1 + self._learns_without_image)
    fills_micro_batches = property(lambda self: self.packed)
    plays = property(lambda self: True)
    corrects_sampler = property(lambda self: self.correction != "none")
    needs_reference = property(lambda self: self.kl_coefficient > 0)
    needs_entropies = property(lambda self: self.entropy_share < 1)
    scoring_temperature = property(lambda self: self.temperature)

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = {
            "epochs, minibatches: must be positive": min(self.epochs, self.minibatches) < 1,
            "refills: must not be negative": self.refills < 0,
            "overlong_penalty: must not be negative": self.overlong_penalty < 0,
            "overlong_start: must be below overlong_end": self.overlong_penalty > 0
            and not 0 <= self.overlong_start < self.overlong_end,
            "overlong_start, overlong_end: overlong_penalty is 0": not self.overlong_penalty
            and (self.overlong_start or self.overlong_end),
            "epsilon: must not be negative": self.epsilon < 0,
            "covariance: must be 'none' with experts": self.experts is not None and self.covariance != "none",
            "entropy_share: must be 1 with experts": self.experts is not None and self.entropy_share < 1,
            "batch_std: scale_advantages is false": self.batch_std and not self.scale_advantages,
            "experts.scope: must not be 'union' with counterfactual": self.counterfactual is not None
            and self.experts is not None
            and self.experts.scope == "union",
        }
        refuse(wrong)

    @property
    def _learns_without_image(self) -> bool:
        return self.counterfactual is not None and self.counterfactual.learn

    @property
    def rows_per_sample(self) -> int:
        without = self.counterfactual.episodes if self.counterfactual and self.counterfactual.learn else 0
        return self.group_size + without + (self.experts.searches if self.experts else 0)

    @property
    def passes(self) -> Passes:
        scorings = (self.old_logprobs == "trainer" or self.needs_entropies) + self.needs_reference
        return Passes(self.epochs, self.minibatches, scorings)

    @property
    def extras(self) -> tuple[str, ...]:
        ours = ("advantages", "old_logprobs")
        if self.experts is None:
            return ours
        return (*ours, "expert", *(("supervised", "mu") if self.experts.supervises else ()))

    def annotate(self, batch: Batch, policy: LogprobsOf, reference: LogprobsOf | None) -> Batch:
        """Adds the log-probabilities of the reference, and of the trainer instead of the sampler, if the loss uses them.

        Also adds which tokens are selected by their covariance or entropy.
        """
        recorded = batch.extras["old_logprobs"]
        if self.old_logprobs == "trainer":
            trainer = policy(batch)
            if self.experts is not None:
                trainer = jnp.where(batch.extras["expert"] > 0, recorded, trainer)
            batch = batch.with_extras(sampler_logprobs=recorded, old_logprobs=trainer)
        if self.covariance != "none":
            old, advantages = batch.extras["old_logprobs"], batch.extras["advantages"]
            draws = draws_of(batch.token_ids, batch.position_ids[:, 0], recorded)
            selected = select_tokens(old, advantages, batch.loss_mask, self, draws)
            batch = batch.with_extras(selected=selected.astype(jnp.float32))
        if self.needs_entropies:
            uncertain = uncertain_tokens(batch.extras["entropies"], batch.loss_mask, self.entropy_share)
            batch = batch.with_extras(uncertain=uncertain.astype(jnp.float32))
        if self.needs_reference:
            assert reference is not None
            batch = batch.with_extras(reference_logprobs=reference(batch))
        return batch

    def counts(self, batch: Batch) -> Counts | StreamCounts:
        if self.experts is None:
            return count_batch(batch.loss_mask, batch.segment_ids, empty=self.count_empty)
        return count_streams(batch.loss_mask, batch.segment_ids, _streams(batch), empty=self.count_empty)

    def loss(self, scores: TokenScores, batch: Batch, counts: Any) -> tuple[Float[Array, ""], Metrics]:
        old, sampler = batch.extras["old_logprobs"], batch.extras.get("sampler_logprobs")
        if self.experts is None:
            loss, metrics = grpo_loss(
                scores.logprobs,
                old,
                batch.extras["advantages"],
                batch.loss_mask,
                batch.segment_ids,
                self,
                entropies=scores.entropies,
                reference_logprobs=batch.extras.get("reference_logprobs"),
                sampler_logprobs=sampler,
                selected=batch.extras["selected"] > 0 if self.covariance != "none" else None,
                uncertain=batch.extras["uncertain"] > 0 if self.needs_entropies else None,
                counts=counts,
            )
            mask, tokens = batch.loss_mask, counts.tokens
        else:
            loss, metrics = self._mixed_loss(scores, batch, counts)
            mask, tokens = batch.loss_mask & ~(batch.extras["expert"] > 0), counts.policy.tokens
        # If the trainer computes the old log-probabilities, the gap is that before the first update, at the sampler's weights.
        trainer, sampler = (scores.logprobs, old) if sampler is None else (old, sampler)
        return loss, metrics | sampler_gap(trainer, sampler, mask, tokens)

    def _mixed_loss(self, scores: TokenScores, batch: Batch, counts: StreamCounts) -> tuple[Float[Array, ""], Metrics]:
        assert self.experts is not None
        experts, streams = self.experts, _streams(batch)

        def loss_of(scores: TokenScores) -> tuple[Float[Array, ""], Metrics]:
            return mixed_loss(
                scores,
                batch.extras["old_logprobs"],
                batch.extras["advantages"],
                batch.loss_mask,
                batch.segment_ids,
                streams,
                self,
                experts,
                reference_logprobs=batch.extras.get("reference_logprobs"),
                sampler_logprobs=batch.extras.get("sampler_logprobs"),
                counts=counts,
            )

        loss, metrics = loss_of(scores)
        fixed = TokenScores(*jax.lax.stop_gradient(tuple(scores)))
        gradient = jax.grad(lambda logprobs: loss_of(TokenScores(logprobs, fixed.entropies))[0])(fixed.logprobs)
        return loss, metrics | stream_metrics(fixed, gradient, batch.loss_mask, streams.expert, counts)

    def summarize(self, metrics: Metrics) -> Metrics:
        """Replaces moments of the importance weights w by the effective sample size (sum w)^2 / (n sum w^2)."""
        square = jnp.maximum(metrics["ratio_square"], 1e-30)
        kept = {name: value for name, value in metrics.items() if name != "ratio_square"}
        return kept | {"effective_sample_size": metrics["ratio_mean"] ** 2 / square}

    def batches(self, feed: Feed) -> Batches:
        assert feed.player is not None
        return GRPOBatches(
            samples=sample_stream(feed.sources, seed=feed.seed, share=feed.share),
            groups=feed.share.size(feed.batch_size),
            player=feed.player,
            sampling=Sampling(self.temperature, self.top_p, feed.sampling_seed),
            shape=feed.shape,
            rewards=Rewards(self.rewards),
            objective=self,
            keep=feed.keep,
            skips=Skips(feed.max_skipped_share),
            experts=self._expert_stream(feed),
            change=self._change(feed),
        )

    def _change(self, feed: Feed) -> Callable[[Sample], Sample] | None:
        if self.counterfactual is None:
            return None
        # The samples of all processes, so that the choice of a wrong image does not depend on their number.
        return find_change(self.counterfactual.intervention, Given(sample_stream(feed.sources, seed=feed.seed), _LENDERS))

    def _expert_stream(self, feed: Feed) -> ExpertStream | Replay | None:
        if self.experts is None:
            return None
        if not self.experts.replay:
            return ExpertStream(self.experts, feed.sampling_seed)
        assert feed.directory is not None
        return Replay(self.experts, feed.directory / "replay", feed.start)

    def inputs(self) -> Mapping[str, Mapping[str, Any]]:
        return Searches(self.experts.traces).inputs() if self.experts is not None else {}


def _streams(batch: Batch) -> Streams:
    return Streams(batch.extras["expert"], batch.extras.get("supervised"), batch.extras.get("mu"))


OBJECTIVES["grpo"] = GRPO
