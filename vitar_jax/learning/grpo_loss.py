"""The loss of the GRPO family, over token log-probabilities.

Denominators count the full batch, so losses and means of micro-batches add up to the full batch's. A function given a
micro-batch also takes the counts of the full batch. If they are None, the input is the full batch. A sequence is a segment of
a row.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.errors import ConfigError
from vitar_jax.learning.objective import Counts, Metrics, count_batch, masked_mean, sequence_sums


@dataclasses.dataclass(frozen=True)
class GRPOLossConfig:
    """Settings of the GRPO family's loss. The defaults are from ViTAR's published run, and `PRESETS` has others.

    Attributes:
      ratio: New over old probability, of each token (PPO) or as the geometric mean over its sequence (GSPO).
      surrogate: "clip" is PPO's. "cispo" weights log-probabilities by the clipped ratio, without gradient through the ratio.
        "sapo" replaces the clipping by a sigmoid of the ratio (Gao et al., 2025). "vespo" weights log-probabilities by a gamma
        function of the ratio of the whole sequence (VESPO, arXiv 2602.10693). "gpg" uses log-probabilities without a ratio
        (Chu et al., 2025).
      sapo_temperatures: Steepness of SAPO's sigmoid for positive and for other advantages.
      vespo_positive, vespo_negative: Shape k and rate lambda of VESPO's gamma function for advantages of at least 0, and
        below.
      clip_low, clip_high: The ratio is clipped to [1 - clip_low, 1 + clip_high]. TRL's CISPO only has a cap: 1 and cap - 1.
      dual_clip: Largest ratio for negative advantages (Ye et al., 2020; verl uses 3). 0 means unlimited.
      mean: Mean over policy tokens (DAPO), over sequences of their tokens' mean (GRPO), or over sequences of their tokens'
        sum divided by `horizon` (Dr. GRPO).
      count_empty: Whether sequences without policy tokens count in means over sequences (TRL: yes, verl: no).
      kl: Estimate of the divergence from the weights at the start of the stage (Schulman, 2020). With
        d = log reference - log policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.
      kl_coefficient: Weight of the estimate in the loss. With 0, no reference weights are kept.
      kl_clamp: Whether to clamp d to [-20, 20] and the estimate to [-10, 10], like verl's k3 and unlike TRL. Without it, only
        k3 clamps d, because one token past exp(20) would make the step's gradient infinite.
      kl_corrected: Whether to multiply the estimate by the ratio (DeepSeek-V3.2, `use_bias_correction_kl` of TRL).
      entropy_coefficient: Weight of the policy tokens' mean entropy, which is subtracted from the loss.
      old_logprobs: Old log-probabilities of `ratio`: recorded by the sampler, or computed by the trainer before the first
        update, with the same weights in training's precision.
      correction: Weighting of each token's policy term by w, the trainer's over the sampler's probability of the token or of
        its sequence. w is clipped to the bounds (TIS, Yao et al., 2025) or set to 0 outside them (IcePop). TRL uses
        "sequence_mask". Requires `old_logprobs="trainer"`.
      correction_low, correction_high: Bounds of w. The defaults are TRL's.
      entropy_share: Share of the policy tokens that keep their policy term: those with the highest entropies at the start of
        the step (TRL's `top_entropy_quantile`, usually 0.2). The means still count all tokens.
      covariance: What happens to `covariance_share` of the policy tokens, whose updates lower the entropy most
        (`learning/token_selection.py`): "clip" leaves out the policy term of tokens that are drawn from those with a covariance
        between `covariance_low` and `covariance_high` (Clip-Cov), and "kl" adds `covariance_kl` times the absolute log-ratio to
        the loss of the tokens with the largest covariances (KL-Cov). The defaults are verl's.
    """

    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo", "sapo", "vespo", "gpg"] = "clip"
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    vespo_negative: tuple[float, float] = (3.0, 2.0)
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    mean: Literal["tokens", "sequences", "horizon"] = "tokens"
    horizon: int = 0
    count_empty: bool = False
    kl: Literal["k1", "k2", "k3"] = "k3"
    kl_coefficient: float = 0.0
    kl_clamp: bool = False
    kl_corrected: bool = False
    entropy_coefficient: float = 0.0
    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    correction_low: float = 0.0
    correction_high: float = 3.0
    entropy_share: float = 1.0
    covariance: Literal["none", "clip", "kl"] = "none"
    covariance_share: float = 2e-4
    covariance_low: float = 1.0
    covariance_high: float = 5.0
    covariance_kl: float = 1.0

    def __post_init__(self) -> None:
        wrong = {
            "clip_low: must be in [0, 1]": not 0 <= self.clip_low <= 1,
            "clip_high: must not be negative": self.clip_high < 0,
            "dual_clip: must be above 1 + clip_high": self.dual_clip and self.dual_clip <= 1 + self.clip_high,
            f"dual_clip: {self.surrogate} has none": self.dual_clip and self.surrogate != "clip",
            "sapo_temperatures: must be positive": min(self.sapo_temperatures) <= 0,
            "vespo_positive, vespo_negative: must be positive": min(*self.vespo_positive, *self.vespo_negative) <= 0,
            f"ratio: {self.surrogate} has none of sequences": self.ratio == "sequence" and self.surrogate in ("vespo", "gpg"),
            "correction: vespo has none": self.correction != "none" and self.surrogate == "vespo",
            "horizon: must be above 0 with mean='horizon', and 0 else": (self.horizon > 0) != (self.mean == "horizon"),
            "count_empty: nothing is counted by sequence with mean='tokens'": self.count_empty and self.mean == "tokens",
            "kl_coefficient: must not be negative": self.kl_coefficient < 0,
            "kl_clamp, kl_corrected: kl_coefficient is 0": (self.kl_clamp or self.kl_corrected) and not self.kl_coefficient,
            "correction: needs old_logprobs='trainer'": self.correction != "none" and self.old_logprobs == "sampler",
            "entropy_share: must be in (0, 1]": not 0 < self.entropy_share <= 1,
            "entropy_coefficient: must be 0 with entropy_share": self.entropy_coefficient and self.entropy_share < 1,
            "covariance: needs surrogate='clip' and ratio='token'": self.covariance != "none"
            and (self.surrogate, self.ratio) != ("clip", "token"),
            "covariance_share: must be in (0, 1]": not 0 < self.covariance_share <= 1,
            "covariance_low: must be below covariance_high": not self.covariance_low < self.covariance_high,
            "covariance_kl: must not be negative": self.covariance_kl < 0,
            "correction_low: must be below correction_high": not 0 <= self.correction_low < self.correction_high,
        }
        refuse(wrong)


def refuse(wrong: Mapping[str, object]) -> None:
    """Raises ConfigError with the first message whose condition holds."""
    for message, holds in wrong.items():
        if holds:
            raise ConfigError(f"objective.{message}")


# Published settings, as keys of `objective=dict(name="grpo", ...)`. Sequences without policy tokens count as in TRL.
PRESETS: dict[str, dict[str, Any]] = {
    # Shao et al., 2024 (DeepSeekMath)
    "grpo": dict(mean="sequences", count_empty=True, kl_coefficient=0.04),
    # Liu et al., 2025; needs `horizon`, the maximum number of tokens of an episode
    "dr_grpo": dict(mean="horizon", count_empty=True, scale_advantages=False),
    # Yu et al., 2025; the length penalty also needs `overlong_penalty`, `overlong_start` and `overlong_end`
    "dapo": dict(clip_high=0.28, refills=10),
    # Zheng et al., 2025
    "gspo": dict(ratio="sequence", mean="sequences", count_empty=True, clip_low=3e-4, clip_high=4e-4),
    # LUSPO, arXiv 2602.05261, with the bounds of GSPO: the mean over sequences of their tokens' sum
    "luspo": dict(ratio="sequence", mean="horizon", horizon=1, count_empty=True, clip_low=3e-4, clip_high=4e-4),
    # MiniMax-M1, 2025, without a lower bound and with a tuned upper bound; this is TRL's cap of 5
    "cispo": dict(surrogate="cispo", clip_low=1.0, clip_high=4.0),
    # Gao et al., 2025
    "sapo": dict(surrogate="sapo", mean="sequences", count_empty=True),
    # VESPO, arXiv 2602.10693
    "vespo": dict(surrogate="vespo"),
    # Cui et al., 2025. As in verl, KL-Cov does not clip the ratio.
    "clip_cov": dict(covariance="clip"),
    "kl_cov": dict(covariance="kl", clip_low=1.0, clip_high=math.inf),
}

MOST_LOG_RATIO = 20.0  # as in verl; a ratio beyond exp(20) would overflow squared gradients
_MOST_SEQUENCE_LOG_RATIO = 10.0  # as in verl's GSPO


def grpo_loss(
    logprobs: Float[Array, "*B S"],
    old_logprobs: Float[Array, "*B S"],
    advantages: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    segment_ids: Int[Array, "*B S"],
    config: GRPOLossConfig,
    *,
    entropies: Float[Array, "*B S"] | None = None,
    reference_logprobs: Float[Array, "*B S"] | None = None,
    sampler_logprobs: Float[Array, "*B S"] | None = None,
    selected: Bool[Array, "*B S"] | None = None,
    uncertain: Bool[Array, "*B S"] | None = None,
    counts: Counts | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the GRPO family's loss and its metrics.

    The default is PPO's clipped surrogate, averaged over policy tokens: `-min(r A, clip(r, 1 - low, 1 + high) A)` with
    `r = exp(logprobs - old_logprobs)`. `GRPOLossConfig` describes the variants. As in verl, a token's log-ratio is clamped to
    [-20, 20] and a sequence's to at most 10, so that one token cannot make the loss infinite. TRL has no such bounds.

    Args:
      entropies, reference_logprobs: Required if their coefficients are not 0.
      sampler_logprobs: Required if the config has a correction.
      selected: Tokens that `select_tokens` selects from the full batch. Required if the config has a covariance.
      uncertain: Result of `uncertain_tokens` for the full batch. Required if the config has an entropy share below 1.
      counts: Denominators of the full batch. If None, the input is the full batch.
    """
    counts = counts or count_batch(loss_mask, segment_ids, empty=config.count_empty)
    lengths = sequence_lengths(loss_mask, segment_ids, logprobs.dtype)
    losses, metrics = policy_losses(
        logprobs,
        old_logprobs,
        advantages,
        loss_mask,
        segment_ids,
        lengths,
        config,
        reference_logprobs=reference_logprobs,
        sampler_logprobs=sampler_logprobs,
        selected=selected,
        uncertain=uncertain,
        tokens=counts.tokens,
    )
    loss = average(losses, loss_mask, lengths, config, counts)
    if config.entropy_coefficient:
        assert entropies is not None
        loss -= config.entropy_coefficient * masked_mean(entropies, loss_mask, counts.tokens)
    return loss, metrics


def policy_losses(
    logprobs: Float[Array, "*B S"],
    old_logprobs: Float[Array, "*B S"],
    advantages: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    segment_ids: Int[Array, "*B S"],
    lengths: Float[Array, "*B S"],
    config: GRPOLossConfig,
    *,
    reference_logprobs: Float[Array, "*B S"] | None,
    sampler_logprobs: Float[Array, "*B S"] | None,
    selected: Bool[Array, "*B S"] | None = None,
    uncertain: Bool[Array, "*B S"] | None = None,
    tokens: Int[Array, ""],
) -> tuple[Float[Array, "*B S"], Metrics]:
    """Returns the loss of each policy token and the metrics of all.

    Args:
      lengths: Result of `sequence_lengths`.
      tokens: Number of policy tokens of the full batch.
    """
    mean_over_tokens = partial(masked_mean, mask=loss_mask, count=tokens)
    unbounded = jnp.where(loss_mask, logprobs - old_logprobs, 0.0)
    log_ratio = clamp(unbounded, -MOST_LOG_RATIO, MOST_LOG_RATIO)
    token_ratio = ratio = jnp.exp(log_ratio)
    if config.ratio == "sequence":
        mean = sequence_sums(unbounded, segment_ids) / lengths
        ratio = jnp.exp(clamp(mean, -jnp.inf, _MOST_SEQUENCE_LOG_RATIO))
    clipped = clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
    match config.surrogate:
        case "clip":
            bounded = clamp(ratio, 0.0, config.dual_clip) if config.dual_clip else ratio
            losses = -jnp.minimum(bounded * advantages, clipped * advantages)
        case "cispo":
            losses = -jax.lax.stop_gradient(clipped) * advantages * logprobs
        case "sapo":
            temperatures = jnp.where(advantages > 0, *config.sapo_temperatures)
            losses = -jax.nn.sigmoid(temperatures * (ratio - 1)) * 4 / temperatures * advantages
        case "vespo":
            weights = gamma_weights(sequence_sums(log_ratio, segment_ids), advantages, config)
            losses = -jax.lax.stop_gradient(weights) * advantages * logprobs
        case "gpg":
            losses = -advantages * logprobs
    metrics = {
        "clip_fraction": mean_over_tokens((ratio != clipped).astype(jnp.float32)),
        "ratio_max": jnp.max(ratio),
        "approx_kl": mean_over_tokens(token_ratio - 1 - jnp.log(token_ratio)),
    }
    if config.entropy_share < 1:
        assert uncertain is not None
        losses = jnp.where(uncertain, losses, 0.0)
    if config.covariance != "none":
        assert selected is not None
        metrics["selected"] = mean_over_tokens(selected.astype(jnp.float32))
        if config.covariance == "clip":
            losses = jnp.where(selected, 0.0, losses)
        else:
            losses += config.covariance_kl * jnp.where(selected, jnp.abs(log_ratio), 0.0)
    if config.correction != "none":
        assert sampler_logprobs is not None
        log_weights = jnp.where(loss_mask, old_logprobs - sampler_logprobs, 0.0)
        weights = correction_weights(log_weights, segment_ids, config)
        metrics["correction"] = mean_over_tokens(weights)
        losses *= weights
    if config.kl_coefficient:
        assert reference_logprobs is not None
        kl = kl_estimate(jnp.where(loss_mask, reference_logprobs - logprobs, 0.0), config)
        metrics["kl"] = mean_over_tokens(kl)
        losses += config.kl_coefficient * (kl * ratio if config.kl_corrected else kl)
    return losses, metrics


def average(
    losses: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    lengths: Float[Array, "*B S"],
    config: GRPOLossConfig,
    counts: Counts,
) -> Float[Array, ""]:
    """Returns the config's mean of the tokens' losses."""
    if config.mean == "tokens":
        return masked_mean(losses, loss_mask, counts.tokens)
    return masked_mean(losses / (lengths if config.mean == "sequences" else config.horizon), loss_mask, counts.sequences)


def sequence_lengths(loss_mask: Bool[Array, "*B S"], segment_ids: Int[Array, "*B S"], dtype: Any) -> Float[Array, "*B S"]:
    """Returns the number of tokens under the loss mask in each token's sequence, at least 1."""
    return jnp.maximum(sequence_sums(loss_mask.astype(dtype), segment_ids), 1)


def clamp(x: Float[Array, "*B"], low: float, high: float) -> Float[Array, "*B"]:
    """Clips to [low, high]. The gradient on a bound is 1, as that of `torch.clamp`; that of `jnp.clip` is a half."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def gamma_weights(
    log_ratios: Float[Array, "*B S"], advantages: Float[Array, "*B S"], config: GRPOLossConfig
) -> Float[Array, "*B S"]:
    """Returns VESPO's weights `w^k exp(lambda (1 - w))`, given the log of the sequences' ratio w. Bounds are those of TRL."""
    log_ratios = jnp.clip(log_ratios, math.log(1e-8), MOST_LOG_RATIO)
    shape, rate = (
        jnp.where(advantages >= 0, *pair) for pair in zip(config.vespo_positive, config.vespo_negative, strict=True)
    )
    return jnp.exp(rate + shape * log_ratios - rate * jnp.exp(log_ratios))


def correction_weights(
    log_weights: Float[Array, "*B S"], segment_ids: Int[Array, "*B S"], config: GRPOLossConfig
) -> Float[Array, "*B S"]:
    """Returns the weight of each token's policy term, given the trainer's minus the sampler's log-probability."""
    if config.correction.startswith("sequence"):
        log_weights = sequence_sums(log_weights, segment_ids)
    weights = jnp.exp(log_weights)
    bounded = jnp.clip(weights, config.correction_low, config.correction_high)
    return bounded if config.correction.endswith("truncate") else jnp.where(weights == bounded, weights, 0.0)


def kl_estimate(d: Float[Array, "*B"], config: GRPOLossConfig) -> Float[Array, "*B"]:
    """Estimates KL(policy, reference) from d = log reference - log policy of a token sampled from the policy."""
    if config.kl_clamp or config.kl == "k3":
        d = clamp(d, -MOST_LOG_RATIO, MOST_LOG_RATIO)
    estimate = {"k1": lambda: -d, "k2": lambda: d**2 / 2, "k3": lambda: jnp.exp(d) - d - 1}[config.kl]()
    return clamp(estimate, -10, 10) if config.kl_clamp else estimate


def sampler_gap(
    logprobs: Float[Array, "*B S"],
    sampler_logprobs: Float[Array, "*B S"],
    loss_mask: Bool[Array, "*B S"],
    count: Int[Array, ""] | None = None,
) -> Metrics:
    """Returns the gap between the trainer's and the sampler's log-probabilities, and moments of their importance weights."""
    difference = jnp.where(loss_mask, logprobs - sampler_logprobs, 0.0)
    ratio = jnp.exp(clamp(difference, -MOST_LOG_RATIO, MOST_LOG_RATIO))
    return {
        "logprob_gap_mean": masked_mean(jnp.abs(difference), loss_mask, count),
        "logprob_gap_max": jnp.max(jnp.abs(difference)),
        "ratio_mean": masked_mean(ratio, loss_mask, count),
        "ratio_square": masked_mean(ratio**2, loss_mask, count),
    }
