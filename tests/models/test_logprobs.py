"""Token log-probabilities against numpy and scipy, for every way of cutting them into chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vitar_jax.models.logprobs import shape_logits, token_logprobs

BINS, R, S, D, V = 2, 3, 8, 5, 11
POLICY_TOKENS = 9


class Case:
    """A batch of random hidden states. Its mask holds at most `POLICY_TOKENS` tokens a bin."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.hidden_states = rng.normal(size=(BINS, R, S, D)).astype(np.float32)
        self.head = rng.normal(size=(D, V)).astype(np.float32)
        self.banned = np.isin(np.arange(V), [2, 7])
        allowed = np.flatnonzero(~self.banned)
        self.token_ids = rng.choice(allowed, (BINS, R, S)).astype(np.int32)
        self.loss_mask = rng.random((BINS, R, S)) < 0.35
        self.loss_mask[..., 0] = False  # nothing stands before the first token
        for bin_ in self.loss_mask.reshape(BINS, -1):
            bin_[np.flatnonzero(bin_)[POLICY_TOKENS:]] = False

    def __call__(self, **options: object) -> tuple[jax.Array, jax.Array]:
        return token_logprobs(self.hidden_states, self.head, self.token_ids, self.loss_mask, self.banned, **options)

    def expected(self, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        logits = self.hidden_states.astype(np.float64) @ self.head
        logprobs = special.log_softmax(np.where(self.banned, -np.inf, logits / temperature), axis=-1)
        logprobs = np.roll(logprobs, 1, axis=2)  # token s is told by position s - 1
        taken = np.take_along_axis(logprobs, self.token_ids[..., None], axis=-1)[..., 0]
        entropies = special.entr(np.exp(logprobs)).sum(axis=-1)
        return np.where(self.loss_mask, taken, 0), np.where(self.loss_mask, entropies, 0)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_logprobs_and_entropies_equal_scipys(temperature: float) -> None:
    case = Case()
    for ours, expected in zip(case(temperature=temperature), case.expected(temperature), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 4, 7, 24, 1000])
@pytest.mark.parametrize("max_tokens", [None, POLICY_TOKENS, POLICY_TOKENS + 1, 1000])
def test_chunks_change_nothing(chunk: int, max_tokens: int | None) -> None:
    case = Case(1)
    assert case.loss_mask.reshape(BINS, -1).sum(axis=1).max() == POLICY_TOKENS
    for ours, expected in zip(case(chunk=chunk, max_tokens=max_tokens), case.expected(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_empty_mask_gives_zeros() -> None:
    case = Case()
    case.loss_mask[1] = False
    for ours, expected in zip(case(), case.expected(), strict=True):
        assert not np.asarray(ours)[1].any()
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_equal_those_of_a_plain_log_softmax() -> None:
    case = Case(2)
    weights = np.random.default_rng(3).normal(size=(2, BINS, R, S)).astype(np.float32)

    def chunked(hidden_states: jax.Array, head: jax.Array) -> jax.Array:
        logprobs, entropies = token_logprobs(
            hidden_states, head, case.token_ids, case.loss_mask, case.banned, temperature=0.7, chunk=4
        )
        return jnp.sum(weights[0] * logprobs + weights[1] * entropies)

    def plain(hidden_states: jax.Array, head: jax.Array) -> jax.Array:
        allowed = np.flatnonzero(~case.banned)  # the banned ids are not there at all
        logits = jnp.roll(hidden_states, 1, axis=2) @ head[:, allowed] / 0.7
        logprobs = jax.nn.log_softmax(logits)
        chosen = jax.nn.one_hot(np.searchsorted(allowed, case.token_ids), len(allowed))
        entropies = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        scored = weights[0] * jnp.sum(chosen * logprobs, axis=-1) + weights[1] * entropies
        return jnp.sum(jnp.where(case.loss_mask, scored, 0))

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(jax.grad(chunked, argnums=(0, 1)))(case.hidden_states, case.head)
        theirs = jax.grad(plain, argnums=(0, 1))(case.hidden_states, case.head)
    for gradient, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(ours[1])[:, case.banned].any()


def test_bf16_states_are_scored_in_fp32() -> None:
    case = Case(4)
    case.hidden_states = jnp.asarray(case.hidden_states, jnp.bfloat16)
    logprobs, _ = case()
    assert logprobs.dtype == jnp.float32
    case.hidden_states = np.asarray(case.hidden_states, np.float32)
    np.testing.assert_allclose(logprobs, case.expected()[0], atol=0.1)  # logits were rounded to bf16


def test_greedy_keeps_the_logits_of_temperature_one() -> None:
    logits = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)
    shaped = np.asarray(shape_logits(logits, np.arange(V) == 4, np.array([0.0, 1.0, 2.0], np.float32)))
    allowed = np.arange(V) != 4
    np.testing.assert_allclose(shaped[:, allowed], (logits / [[1], [1], [2]])[:, allowed], rtol=1e-6)
    assert (shaped[:, 4] < -1e20).all()
