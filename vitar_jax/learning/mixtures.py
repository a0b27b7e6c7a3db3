"""The loss over two streams: the policy's own episodes, and an expert's.

An expert's probability of its own tokens is taken to be 1. The ratio of a token of the expert is therefore the policy's own
probability p of it, with `old_logprobs` of 0, whatever `ratio`, `old_logprobs` and `correction` make of the policy's tokens.
Replayed episodes keep the log-probabilities that they were drawn with.

The gradient of the expert's term by log p, for an advantage of 1:

    p                          0.001   0.1    1
    shape none: p              0.001   0.1    1        clipping only matters for negative advantages, where p > 1 - clip_low
    shape luffy: p / (p + 0.1) 0.0098  0.25   0.083
    shape log: log p           1       1      1
    supervised                 1       1      1
    supervised, phi            0.001   0.09   0
"""

import dataclasses
import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.learning.grpo_loss import (
    MOST_LOG_RATIO,
    GRPOLossConfig,
    average,
    clamp,
    policy_losses,
    refuse,
    sequence_lengths,
)
from vitar_jax.learning.objective import Counts, Metrics, TokenScores, count_batch, masked_mean

LOW_PROBABILITY = 0.05  # below it, the policy hardly ever writes the token


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """What is learnt from an expert's episodes. The defaults are MedEyes', and `MIXTURES` has others.

    The loss is `(1 - mu) * L + mu * S`. L is the loss of the policy's objective, in which the expert's tokens have the term
    below; its mean is over the tokens or sequences of both streams. S is the weighted mean negative log-probability of the
    expert's tokens.

    Attributes:
      scope: Episodes whose mean and std of rewards make an expert's advantage. "stream": the expert's episodes of its sample
        (MedEyes). "union": the episodes of both streams of its sample, which then also make the policy's advantages (LUFFY).
        "policy": the policy's episodes of its sample (LUFFY's split). "batch": the expert's episodes of the step.
      shape: Function of the ratio p: "none" is p, "luffy" is p / (p + gamma), "log" is log p.
      clip: Whether to clip the shaped ratio to the objective's bounds, as PPO does.
      weight: Weight of the expert's term. With 0, the mean of L is over the policy's tokens alone (CHORD).
      mu_peak, mu_valley, mu_warmup, mu_decay: mu rises linearly from 0 to its peak over `mu_warmup` steps, then falls to its
        valley over `mu_decay` steps, along a cosine (CHORD, as in Trinity-RFT).
      blend: Whether L has the weight 1 - mu (CHORD). If not, it has the weight 1 (SRFT).
      token_weight: Weight of a token in S, without gradient: 1, "phi" is p (1 - p) (CHORD), "entropy" is exp(-entropy) (SRFT).
      supervise: Episodes that S learns from: all, or only those with the right answer.
      use: Groups in which the expert is learnt from. "where_stuck": those in which no episode of the policy has the right
        answer (like HPT, arXiv 2509.04419).
    """

    scope: Literal["stream", "union", "policy", "batch"] = "stream"
    shape: Literal["none", "luffy", "log"] = "none"
    gamma: float = 0.1
    clip: bool = True
    weight: float = 1.0
    mu_peak: float = 0.0
    mu_valley: float = 0.0
    mu_warmup: int = 0
    mu_decay: int = 0
    blend: bool = True
    token_weight: Literal["one", "phi", "entropy"] = "one"
    supervise: Literal["all", "right"] = "all"
    use: Literal["always", "where_stuck"] = "always"

    def __post_init__(self) -> None:
        highest = max(self.mu_peak, self.mu_valley)
        wrong = {
            "gamma: must be positive": self.gamma <= 0,
            "clip: log p has no bounds; set it to false": self.clip and self.shape == "log",
            "weight: must not be negative": self.weight < 0,
            "weight: is 0 and mu is 0, so that nothing is learnt from experts": not self.weight and not highest,
            "mu_peak, mu_valley: must be in [0, 1]": not 0 <= min(self.mu_peak, self.mu_valley) <= highest <= 1,
            "mu_warmup, mu_decay: must not be negative": min(self.mu_warmup, self.mu_decay) < 0,
            "mu_peak: is never reached, because mu_warmup and mu_decay are 0": self.mu_peak != self.mu_valley
            and not (self.mu_warmup or self.mu_decay),
            "token_weight, supervise: mu is 0": not highest and (self.token_weight != "one" or self.supervise != "all"),
        }
        refuse({f"experts.{message}": holds for message, holds in wrong.items()})

    @property
    def supervises(self) -> bool:
        """Whether mu is ever above 0."""
        return max(self.mu_peak, self.mu_valley) > 0

    def mu(self, step: int) -> float:
        """Returns the weight of the supervised term in a step, counted from 0."""
        if step < self.mu_warmup:
            return self.mu_peak * step / self.mu_warmup
        done = step - self.mu_warmup
        if done >= self.mu_decay:
            return self.mu_valley
        return self.mu_valley + (self.mu_peak - self.mu_valley) * (1 + math.cos(math.pi * done / self.mu_decay)) / 2


# Published mixtures, as keys of `experts=dict(traces=..., **MIXTURES["luffy"])`. What they do with the policy's own episodes
# is the objective's: LUFFY has `scale_advantages=False` and `mean="horizon"` in its script, and SRFT has a term of its own for
# right episodes of the policy, which is not part of these.
MIXTURES: dict[str, dict[str, Any]] = {
    # arXiv 2511.22018
    "medeyes": dict(scope="stream", shape="none", clip=True),
    # Yan et al., 2025 (arXiv 2504.14945), luffy/verl/verl/mix_src/mix_core_alg.py
    "luffy": dict(scope="union", shape="luffy", gamma=0.1, clip=False),
    # Zhang et al., 2025 (arXiv 2508.11408), Trinity-RFT's chord_policy_loss.py: a constant mu, and phi
    "chord": dict(weight=0.0, mu_peak=0.1, mu_valley=0.1, token_weight="phi"),
    # Fu et al., 2025 (arXiv 2506.19767), its two terms of demonstrations
    "srft": dict(scope="union", shape="none", clip=True, mu_peak=0.5, mu_valley=0.5, blend=False, token_weight="entropy"),
}


class Streams(NamedTuple):
    """Whose tokens are whose, and how the supervised term learns from them. All are float32 [bins, rows, S].

    Attributes:
      expert: 1 for the tokens of an expert's episode, 0 for others.
      supervised: 1 for the tokens of an episode that the supervised term learns from. None if mu is 0.
      mu: Weight of the supervised term, at the tokens of every episode. None if it is 0.
    """

    expert: Float[Array, "*B S"]
    supervised: Float[Array, "*B S"] | None = None
    mu: Float[Array, "*B S"] | None = None


class StreamCounts(NamedTuple):
    """Denominators of a full batch of two streams."""

    policy: Counts
    expert: Counts
    supervised: Int[Array, ""]

    @property
    def tokens(self) -> Int[Array, ""]:
        """Number of tokens under the loss mask, of both streams."""
        return self.policy.tokens + self.expert.tokens

    @property
    def sequences(self) -> Int[Array, ""]:
        return self.policy.sequences + self.expert.sequences


def count_streams(
    loss_mask: Bool[Array, "*B S"], segment_ids: Int[Array, "*B S"], streams: Streams, *, empty: bool = False
) -> StreamCounts:
    """Counts the tokens under the loss mask and the sequences of each stream. With `empty`, also those without such tokens."""
    theirs = streams.expert > 0
    both = count_batch(loss_mask, segment_ids, empty=empty)
    expert = count_batch(loss_mask & theirs, segment_ids)
    if empty:
        expert = expert._replace(sequences=count_batch(theirs, segment_ids).sequences)
    policy = Counts(both.tokens - expert.tokens, both.sequences - expert.sequences)
    supervised = jnp.int32(0) if streams.supervised is None else jnp.sum(loss_mask & (streams.supervised > 0))
    return StreamCounts(policy, expert, supervised)


def mixed_loss(
    scores: TokenScores,
    old_logprobs: Float[Array, "*B S"],
    advantages: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    segment_ids: Int[Array, "*B S"],
    streams: Streams,
    config: GRPOLossConfig,
    mixture: MixtureConfig,
    *,
    reference_logprobs: Float[Array, "*B S"] | None = None,
    sampler_logprobs: Float[Array, "*B S"] | None = None,
    counts: StreamCounts | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss over both streams and its metrics, which are of the policy's tokens unless their names say `expert/`.

    The terms of divergence and entropy are of the policy's tokens alone, because only those are samples of the policy.

    Args:
      old_logprobs: 0 for an expert's tokens. Replayed tokens have the log-probabilities that they were drawn with.
      reference_logprobs, sampler_logprobs, counts: As in `grpo_loss`.
    """
    logprobs, entropies = scores
    counts = counts or count_streams(loss_mask, segment_ids, streams, empty=config.count_empty)
    theirs = loss_mask & (streams.expert > 0)
    ours = loss_mask & ~theirs
    lengths = sequence_lengths(loss_mask, segment_ids, logprobs.dtype)  # a sequence is of one stream
    losses, metrics = policy_losses(
        logprobs,
        old_logprobs,
        advantages,
        ours,
        segment_ids,
        lengths,
        config,
        reference_logprobs=reference_logprobs,
        sampler_logprobs=sampler_logprobs,
        tokens=counts.policy.tokens,
    )
    learnt, total = ours, counts.policy
    if mixture.weight:
        expert = mixture.weight * expert_losses(logprobs, old_logprobs, advantages, theirs, config, mixture)
        losses = jnp.where(theirs, expert, losses)
        learnt, total = loss_mask, Counts(counts.tokens, counts.sequences)
    loss = average(losses, learnt, lengths, config, total)
    if config.entropy_coefficient:
        loss -= config.entropy_coefficient * masked_mean(entropies, ours, counts.policy.tokens)
    if mixture.supervises:
        assert streams.mu is not None and streams.supervised is not None
        mu = jnp.max(streams.mu)
        taught = theirs & (streams.supervised > 0)
        learnable = jnp.where(taught, logprobs, 0.0)
        supervised = masked_mean(supervised_losses(learnable, entropies, mixture), taught, counts.supervised)
        loss = (1 - mu if mixture.blend else 1.0) * loss + mu * supervised
        metrics["expert/supervised"] = supervised
    return loss, metrics


def expert_losses(
    logprobs: Float[Array, "*B S"],
    old_logprobs: Float[Array, "*B S"],
    advantages: Float[Array, "*B S"],
    mask: Bool[Array, "*B S"],
    config: GRPOLossConfig,
    mixture: MixtureConfig,
) -> Float[Array, "*B S"]:
    """Returns the policy-gradient loss of each of the expert's tokens, where `mask` is true."""
    log_ratio = clamp(jnp.where(mask, logprobs - old_logprobs, 0.0), -MOST_LOG_RATIO, MOST_LOG_RATIO)
    if mixture.shape == "log":
        return -log_ratio * advantages
    ratio = jnp.exp(log_ratio)
    if mixture.shape == "luffy":
        ratio = ratio / (ratio + mixture.gamma)
    if not mixture.clip:
        return -ratio * advantages
    return -jnp.minimum(ratio * advantages, clamp(ratio, 1 - config.clip_low, 1 + config.clip_high) * advantages)


def supervised_losses(
    logprobs: Float[Array, "*B S"], entropies: Float[Array, "*B S"], mixture: MixtureConfig
) -> Float[Array, "*B S"]:
    """Returns each token's weighted negative log-probability. No gradient goes through the weight."""
    match mixture.token_weight:
        case "phi":
            probabilities = jax.lax.stop_gradient(jnp.exp(logprobs))
            return -probabilities * (1 - probabilities) * logprobs
        case "entropy":
            return -jnp.exp(-jax.lax.stop_gradient(entropies)) * logprobs
        case "one":
            return -logprobs


def stream_metrics(
    scores: TokenScores,
    gradient: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    expert: Float[Array, "*B S"],
    counts: StreamCounts,
) -> Metrics:
    """Returns what each stream teaches.

    `signal` is the mean absolute gradient of the loss by a token's log-probability, times the number of tokens of both streams.
    If the loss is a mean over these tokens, the policy's signal before the first update is the mean of `|A|`.

    Args:
      gradient: Gradient of the loss by `scores.logprobs`.
    """
    theirs = loss_mask & (expert > 0)
    of_policy = partial(masked_mean, mask=loss_mask & ~theirs, count=counts.policy.tokens)
    of_expert = partial(masked_mean, mask=theirs, count=counts.expert.tokens)
    probabilities, sizes = jnp.exp(scores.logprobs), jnp.abs(gradient) * counts.tokens
    return {
        "signal": of_policy(sizes),
        "entropy": of_policy(scores.entropies),
        "expert/signal": of_expert(sizes),
        "expert/entropy": of_expert(scores.entropies),
        "expert/probability": of_expert(probabilities),
        "expert/low_probability": of_expert((probabilities < LOW_PROBABILITY).astype(jnp.float32)),
    }
