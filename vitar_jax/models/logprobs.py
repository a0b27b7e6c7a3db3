"""Log-probabilities of tokens. The sampler, the reference and the update share one definition.

The distribution is `log_softmax(where(banned, -inf, logits) / temperature)`. It is computed in fp32, for policy tokens
only and in chunks of tokens, so that logits of all tokens never exist at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitar_jax.models.kernels.xla import MASKED


def shape_logits(
    logits: Float[Array, "*B V"], banned: Bool[Array, " V"], temperature: Float[Array, "*B"]
) -> Float[Array, "*B V"]:
    """Returns the fp32 logits of the sampling distribution. Temperature 0 (greedy) keeps the logits of temperature 1."""
    return jnp.where(banned, MASKED, logits.astype(jnp.float32) / _divisor(temperature)[..., None])


def _divisor(temperature: Float[Array, "*B"]) -> Float[Array, "*B"]:
    return jnp.where(temperature > 0, temperature, 1.0)


def token_logprobs(
    hidden_states: Float[Array, "bins R S D"],
    head: Float[Array, "D V"],
    token_ids: Int[Array, "bins R S"],
    loss_mask: Bool[Array, "bins R S"],
    banned: Bool[Array, " V"],
    *,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    chunk: int = 1024,
) -> tuple[Float[Array, "bins R S"], Float[Array, "bins R S"]]:
    """Returns the log-probability of each masked token given the tokens before it, and the entropy of its distribution.

    Args:
      hidden_states: Token s is predicted from position s - 1 of its row.
      max_tokens: Maximum number of masked tokens in a bin, known from packing. If None, all tokens may be masked.
      chunk: Number of tokens whose logits exist at one time.

    Returns:
      Log-probabilities and entropies, fp32, 0 outside the mask.
    """
    bins, rows, length, width = hidden_states.shape
    total = rows * length
    count = min(max_tokens or total, total)
    chunk = min(chunk, count)
    padded = -(-count // chunk) * chunk
    before = jnp.roll(hidden_states, 1, axis=2).reshape(bins, total, width)
    flat_mask = loss_mask.reshape(bins, total)
    # Indices of masked tokens, padded with `total`, which is out of range: gathers clip it, scatters drop it.
    index = jax.vmap(lambda m: jnp.nonzero(m, size=padded, fill_value=total)[0])(flat_mask)
    states = jnp.take_along_axis(before, jnp.minimum(index, total - 1)[..., None], axis=1)
    targets = jnp.take_along_axis(token_ids.reshape(bins, total), jnp.minimum(index, total - 1), axis=1)

    def chunked(x: jax.Array) -> jax.Array:  # [bins, n, ...] -> [n / chunk, bins, chunk, ...]
        return jnp.moveaxis(x.reshape(bins, -1, chunk, *x.shape[2:]), 1, 0)

    scored = jax.lax.map(
        lambda pair: _score(pair[0], head, pair[1], banned, jnp.float32(temperature)), (chunked(states), chunked(targets))
    )

    def spread(x: jax.Array) -> jax.Array:  # back to the positions of the tokens
        x = jnp.moveaxis(x, 0, 1).reshape(bins, padded)
        return jax.vmap(lambda i, v: jnp.zeros(total).at[i].set(v, mode="drop"))(index, x).reshape(bins, rows, length)

    return spread(scored[0]), spread(scored[1])


# One chunk. The backward pass recomputes its logits and turns them into their gradient.


@jax.custom_vjp
def _score(
    states: Float[Array, "bins chunk D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "bins chunk"],
    banned: Bool[Array, " V"],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, "bins chunk"], Float[Array, "bins chunk"]]:
    """Returns the log-probabilities of `targets`, and entropies."""
    return _score_forward(states, head, targets, banned, temperature)[0]


def _score_forward(states: Array, head: Array, targets: Array, banned: Array, temperature: Array) -> tuple[Any, Any]:
    logits = _logits(states, head, banned, temperature)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    logprobs = logits - normaliser[:, None]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    taken = jnp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1)[:, 0] - normaliser
    outcome = taken.reshape(targets.shape), entropy.reshape(targets.shape)
    return outcome, (states, head, targets, banned, temperature, normaliser, entropy)


def _score_backward(kept: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    """Returns gradients. With p = softmax(z): d log p[t] / dz = onehot(t) - p, and d entropy / dz = -p (log p + entropy)."""
    states, head, targets, banned, temperature, normaliser, entropy = kept
    of_logprob, of_entropy = (gradient.reshape(-1, 1) for gradient in gradients)
    logprobs = _logits(states, head, banned, temperature) - normaliser[:, None]
    is_target = jnp.arange(head.shape[1]) == targets.reshape(-1, 1)
    through = of_logprob + of_entropy * (logprobs + entropy[:, None])
    gradient = jnp.where(is_target, of_logprob, 0.0) - jnp.exp(logprobs) * through
    gradient = jnp.where(banned, 0.0, gradient / _divisor(temperature)).astype(states.dtype)
    of_states = gradient @ head.astype(states.dtype).T
    of_head = jnp.dot(states.reshape(-1, states.shape[-1]).T, gradient, preferred_element_type=jnp.float32)
    return of_states.reshape(states.shape), of_head.astype(head.dtype), None, None, None


_score.defvjp(_score_forward, _score_backward)


def _logits(states: Array, head: Array, banned: Array, temperature: Array) -> Float[Array, "tokens V"]:
    states = states.reshape(-1, states.shape[-1])
    logits = jnp.dot(states, head.astype(states.dtype), preferred_element_type=jnp.float32)
    return shape_logits(logits, banned, jnp.broadcast_to(temperature, logits.shape[:1]))
