"""The loss over two streams against forms not written here, published code and TRL."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.kit.grpo import CONFIGS, Arrays, case, trl
from vitar_jax.errors import ConfigError
from vitar_jax.learning.advantages import group_advantages
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.mixtures import MIXTURES, MixtureConfig, Streams, count_streams, mixed_loss
from vitar_jax.learning.objective import TokenScores

ROWS, EXPERTS, S = 14, 6, 12
MU = 0.3
SHAPES = {"none": dict(shape="none"), "luffy": dict(shape="luffy", clip=False), "log": dict(shape="log", clip=False)}


def two_streams() -> Arrays:
    """Eight episodes of the policy, then six of an expert whose tokens have probabilities from 0.001 to 1."""
    rng = np.random.default_rng(0)
    expert = np.repeat(np.arange(ROWS)[:, None] >= ROWS - EXPERTS, S, axis=1)
    old = np.where(expert, 0.0, -rng.gamma(1.0, 1.0, (ROWS, S)))
    logprobs = np.where(expert, np.log(rng.uniform(0.001, 1, (ROWS, S))), np.minimum(old + 0.3 * rng.normal(size=(ROWS, S)), 0))
    return {
        "logprobs": logprobs,
        "old_logprobs": old,
        "advantages": np.repeat(rng.normal(size=(ROWS, 1)), S, axis=1),
        "loss_mask": rng.random((ROWS, S)) < 0.7,
        "segment_ids": np.ones((ROWS, S), np.int32),
        "entropies": rng.gamma(1.0, 1.0, (ROWS, S)),
        "expert": expert.astype(np.float32),
        "supervised": expert.astype(np.float32),
        "mu": np.full((ROWS, S), MU),
    }


def loss_of(arrays: Arrays, config: GRPO, mixture: MixtureConfig, scores: Any = None, counts: Any = None) -> Any:
    given = {name: jnp.asarray(values) for name, values in arrays.items()}
    scores = TokenScores(given["logprobs"], given["entropies"]) if scores is None else TokenScores(*scores)
    optional: dict[str, Any] = {name: given[name] for name in ("reference_logprobs", "sampler_logprobs") if name in given}
    return mixed_loss(
        scores,
        given["old_logprobs"],
        given["advantages"],
        given["loss_mask"],
        given["segment_ids"],
        Streams(given["expert"], given.get("supervised"), given.get("mu")),
        config,
        mixture,
        counts=counts,
        **optional,
    )


def ours(arrays: Arrays, config: GRPO, mixture: MixtureConfig) -> tuple[float, np.ndarray]:
    """Loss in fp64, and its gradients to log-probabilities and entropies."""
    with jax.enable_x64(True):
        scores = jnp.stack([jnp.asarray(arrays[name]) for name in ("logprobs", "entropies")])
        loss, gradient = jax.value_and_grad(lambda scores: loss_of(arrays, config, mixture, scores)[0])(scores)
    return float(loss), np.asarray(gradient)


# Independent forms


def by_hand(arrays: Arrays, config: GRPO, mixture: MixtureConfig) -> tuple[float, np.ndarray]:
    """The loss, token by token, and its gradient to log-probabilities by the derivatives of the module's table."""
    low, high = 1 - config.clip_low, 1 + config.clip_high
    mask, expert = arrays["loss_mask"], arrays["expert"] > 0
    learnt = mask if mixture.weight else mask & ~expert
    loss, gradient = 0.0, np.zeros((ROWS, S))
    scale = 1 - MU if mixture.mu_peak and mixture.blend else 1.0
    for row, token in np.argwhere(learnt):
        advantage, p = arrays["advantages"][row, token], math.exp(arrays["logprobs"][row, token])
        if expert[row, token]:
            value, slope = {
                "none": (p, p),
                "luffy": (p / (p + 0.1), 0.1 * p / (p + 0.1) ** 2),
                "log": (math.log(p), 1.0),
            }[mixture.shape]
            clip = mixture.clip
        else:
            value = slope = p / math.exp(arrays["old_logprobs"][row, token])
            clip = True
        if clip and (value > high and advantage > 0 or value < low and advantage < 0):
            value, slope = (high if value > high else low), 0.0
        weight = scale / (np.sum(learnt) if config.mean == "tokens" else np.sum(learnt.any(axis=1)) * np.sum(learnt[row]))
        loss -= weight * value * advantage
        gradient[row, token] -= weight * slope * advantage
    if mixture.mu_peak:
        taught = np.argwhere(mask & (arrays["supervised"] > 0))
        for row, token in taught:
            p, entropy = math.exp(arrays["logprobs"][row, token]), arrays["entropies"][row, token]
            weight = {"one": 1.0, "phi": p * (1 - p), "entropy": math.exp(-entropy)}[mixture.token_weight]
            loss -= MU * weight * math.log(p) / len(taught)
            gradient[row, token] -= MU * weight / len(taught)
    return float(loss), np.asarray(gradient)


def in_torch(arrays: Arrays, name: str) -> tuple[float, np.ndarray]:
    """Each published mixture as its own formula, in torch."""
    logprobs = torch.tensor(arrays["logprobs"], requires_grad=True)
    old, advantages, entropies = (torch.tensor(arrays[key]) for key in ("old_logprobs", "advantages", "entropies"))
    mask, expert = torch.tensor(arrays["loss_mask"]), torch.tensor(arrays["expert"]).bool()
    ratio = torch.exp(logprobs - old)
    ppo = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2))
    nll = -logprobs[mask & expert]
    if name == "medeyes":
        loss = ((ppo * mask).sum(1) / mask.sum(1)).mean()
    elif name == "luffy":
        loss = torch.where(expert, -advantages * ratio / (ratio + 0.1), ppo)[mask].mean()
    elif name == "chord":
        p = torch.exp(-nll).detach()
        loss = (1 - MU) * ppo[mask & ~expert].mean() + MU * (p * (1 - p) * nll).mean()
    else:
        loss = ppo[mask].mean() + MU * (torch.exp(-entropies[mask & expert]) * nll).mean()
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.numpy()


OBJECTIVE = {name: GRPO(mean="sequences" if name == "medeyes" else "tokens") for name in MIXTURES}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_published_mixtures_equal_two_independent_forms(name: str) -> None:
    arrays, mixture = two_streams(), MixtureConfig(**MIXTURES[name])
    loss, gradient = ours(arrays, OBJECTIVE[name], mixture)
    for expected_loss, expected in (by_hand(arrays, OBJECTIVE[name], mixture), in_torch(arrays, name)):
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
        np.testing.assert_allclose(gradient[0], expected, rtol=1e-10, atol=1e-13)
    assert not gradient[1].any()  # entropies weigh, and are not learnt
    assert np.abs(gradient[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mean", ["tokens", "sequences"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("token_weight", ["one", "phi", "entropy"])
def test_any_mixture_equals_the_form_by_hand(mean: Any, shape: str, token_weight: Any) -> None:
    mixture = MixtureConfig(**SHAPES[shape], mu_peak=MU, mu_valley=MU, token_weight=token_weight)
    arrays = two_streams()
    arrays["supervised"][-2:] = 0  # wrong searches
    loss, gradient = ours(arrays, GRPO(mean=mean), mixture)
    expected_loss, expected = by_hand(arrays, GRPO(mean=mean), mixture)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-10, atol=1e-13)


# Published code. These numbers are what it returned for `two_streams`: the loss, and the sums of the absolute gradients by the
# log-probabilities of the policy's and of the expert's tokens.

LUFFY = {  # `compute_token_on_off_policy_loss` of LUFFY at 01f4ae0, in fp64
    "p_div_p_0.1": (dict(shape="luffy"), -0.0756705180930686, 0.2205597467867514, 0.07174285718237355),
    "p_div_p_0.3": (dict(shape="luffy", gamma=0.3), -0.060941015604586264, 0.2205597467867514, 0.1055702772885346),
    "no_reshape": (dict(shape="none"), -0.051989332899920554, 0.2205597467867514, 0.25680730091228904),
    "logp": (dict(shape="log"), 0.09739935350940294, 0.2205597467867514, 0.49260450414641843),
}
CHORD = {  # `mix_chord` of Trinity-RFT at 0414330: phi, mu
    (True, 0.1): (-0.03481574184116304, 0.3299454590445051, 0.017302171487627645),
    (False, 0.1): (0.04724404440330551, 0.3299454590445051, 0.1),
    (True, 0.5): (0.04154989847891091, 0.18330303280250282, 0.08651085743813822),
}


def sizes(gradient: np.ndarray, arrays: Arrays) -> list[float]:
    expert = arrays["expert"] > 0
    return [np.abs(gradient[0][~expert]).sum(), np.abs(gradient[0][expert]).sum()]


@pytest.mark.parametrize("name", LUFFY)
def test_luffys_own_code_returns_the_same(name: str) -> None:
    arrays, (keys, *expected) = two_streams(), LUFFY[name]
    loss, gradient = ours(arrays, GRPO(), MixtureConfig(scope="union", clip=False, **keys))
    assert [loss, *sizes(gradient, arrays)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("phi, mu", CHORD)
def test_chords_own_code_returns_the_same(phi: bool, mu: float) -> None:
    """Its means add 1e-8 to the number of tokens."""
    arrays = two_streams() | {"mu": np.full((ROWS, S), mu)}
    mixture = MixtureConfig(weight=0.0, mu_peak=mu, mu_valley=mu, token_weight="phi" if phi else "one")
    loss, gradient = ours(arrays, GRPO(dual_clip=3.0), mixture)
    assert [loss, *sizes(gradient, arrays)] == pytest.approx(CHORD[phi, mu], rel=2e-9)


def test_mu_follows_chords_schedule() -> None:
    mixture = MixtureConfig(mu_peak=0.9, mu_valley=0.05, mu_warmup=10, mu_decay=20)
    published = [0.0, 0.45, 0.9, 0.7755203820042827, 0.475, 0.0552324552470665, 0.05, 0.05]
    assert [mixture.mu(step) for step in (0, 5, 10, 15, 20, 29, 30, 100)] == pytest.approx(published, rel=1e-12)
    assert MixtureConfig(**MIXTURES["chord"]).mu(0) == 0.1 and MixtureConfig().mu(7) == 0


# TRL


def beside_an_expert(config: GRPO) -> tuple[Arrays, Arrays]:
    """TRL's case with the last five rows an expert's, whose advantages are 0, and the same as TRL would need to see it."""
    arrays = case()
    expert = np.zeros(arrays["loss_mask"].shape)
    expert[-5:] = 1
    mixed = arrays | {"expert": expert, "supervised": expert, "mu": np.zeros_like(expert)}
    mixed |= {name: np.where(expert, 0, arrays[name]) for name in ("advantages", "old_logprobs", "sampler_logprobs")}
    # TRL has no experts: no divergence of theirs from the reference, and no entropies.
    theirs = arrays | {"advantages": mixed["advantages"]}
    theirs["reference_logprobs"] = np.where(expert, arrays["logprobs"], arrays["reference_logprobs"])
    share = np.sum(arrays["loss_mask"]) / np.sum(arrays["loss_mask"] & (expert == 0))
    theirs["entropies"] = np.where(expert, 0, arrays["entropies"] * share)
    return mixed, theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "sequence_mask", "entropy"])
def test_experts_without_advantages_leave_trls_loss(name: str) -> None:
    check_against_trl(name)


@pytest.mark.slow
def test_experts_without_advantages_leave_trls_loss_for_every_objective() -> None:
    for name in CONFIGS:
        check_against_trl(name)


def check_against_trl(name: str) -> None:
    """Also that experts without a term of their own change nothing at all."""
    config = CONFIGS[name]
    mixed, theirs = beside_an_expert(config)
    policy = mixed["expert"] == 0
    loss, gradient = ours(mixed, config, MixtureConfig())
    expected_loss, expected = trl(theirs, config)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-9, atol=1e-10, err_msg=name)
    share = np.sum(mixed["loss_mask"]) / np.sum(mixed["loss_mask"] & policy)
    expected[1] *= share * policy  # of the entropies that were given
    assert np.linalg.norm(gradient - expected) <= 1e-9 * np.linalg.norm(expected), name

    alone = {key: values[:-5] for key, values in case().items()}
    mixed |= {"advantages": case()["advantages"]}
    loss, gradient = ours(mixed, config, MixtureConfig(weight=0.0, mu_peak=0.1, mu_valley=0.1))
    expected_loss, expected = trl(alone, config)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-9, atol=1e-10, err_msg=name)
    assert not gradient[:, -5:].any()
    assert np.linalg.norm(gradient[:, :-5] - expected) <= 1e-9 * np.linalg.norm(expected), name


# An expert's probability is 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gspo", "cispo", "sapo", "vespo", "gpg", "token_truncate", "sequence_mask", "dual clip"])
def test_an_experts_ratio_is_the_policys_probability_whatever_the_objective(name: str) -> None:
    config = dataclasses.replace(CONFIGS[name], mean="tokens", horizon=0, count_empty=False, clip_low=0.2, clip_high=0.2)
    arrays = two_streams()
    arrays |= {"sampler_logprobs": arrays["old_logprobs"] - 0.1, "reference_logprobs": arrays["old_logprobs"]}
    gradient = ours(arrays, config, MixtureConfig())[1]
    expected = by_hand(arrays, GRPO(), MixtureConfig())[1]
    expert = arrays["expert"] > 0
    np.testing.assert_allclose(gradient[0][expert], expected[expert], rtol=1e-10)
    assert not gradient[1][expert].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_order_packing_and_micro_batches_change_nothing(name: str) -> None:
    arrays, config, mixture = two_streams(), OBJECTIVE[name], MixtureConfig(**MIXTURES[name])
    loss, gradient = ours(arrays, config, mixture)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = {key: values[order] for key, values in arrays.items()}
    packed = {key: values.reshape(ROWS // 2, 2 * S) for key, values in shuffled.items()}
    packed["segment_ids"] = np.repeat([[1, 2]], S, axis=1).repeat(ROWS // 2, axis=0)
    for layout in (shuffled, packed):
        found, slope = ours(layout, config, mixture)
        assert found == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(slope.reshape(2, ROWS, S), gradient[:, order], rtol=1e-10, atol=1e-15)
    with jax.enable_x64(True):
        given = {key: jnp.asarray(values) for key, values in packed.items()}
        streams = Streams(given["expert"], given["supervised"], given["mu"])
        counts = count_streams(given["loss_mask"], given["segment_ids"], streams)
        parts = [{key: values[rows] for key, values in packed.items()} for rows in (slice(0, 3), slice(3, None))]
        whole = loss_of(packed, config, mixture)[1]
        losses, metrics = zip(*(loss_of(part, config, mixture, counts=counts) for part in parts), strict=True)
    assert sum(map(float, losses)) == pytest.approx(loss, rel=1e-12)
    for key, value in whole.items():
        values = [float(m[key]) for m in metrics]
        assert (max(values) if key.endswith("_max") else sum(values)) == pytest.approx(float(value), rel=1e-6), key


@pytest.mark.parametrize("name", MIXTURES)
def test_nothing_outside_the_mask_counts(name: str) -> None:
    arrays, config, mixture = two_streams(), OBJECTIVE[name], MixtureConfig(**MIXTURES[name])
    expected = ours(arrays, config, mixture)
    for key, value in {"logprobs": 1e4, "old_logprobs": -1e4, "advantages": 1e9, "entropies": 1e9}.items():
        arrays[key] = np.where(arrays["loss_mask"], arrays[key], value)
    loss, gradient = ours(arrays, config, mixture)
    assert loss == expected[0] and np.array_equal(gradient, expected[1])


def test_metrics_of_ratio_and_divergence_are_of_the_policy_alone() -> None:
    arrays, config = two_streams(), GRPO(kl_coefficient=0.1)
    arrays["reference_logprobs"] = arrays["logprobs"] - 0.1
    with jax.enable_x64(True):
        expected = loss_of(arrays, config, MixtureConfig())[1]
        spoilt = arrays | {"logprobs": np.where(arrays["expert"], -1e3, arrays["logprobs"])}
        found = loss_of(spoilt, config, MixtureConfig())[1]
    assert {key: float(value) for key, value in found.items()} == {key: float(value) for key, value in expected.items()}
    assert found.keys() == {"clip_fraction", "ratio_max", "approx_kl", "kl"}


# What decides what is learnt


EPISODES = 200


def expert_gradient(p: np.ndarray, advantages: np.ndarray, **keys: Any) -> np.ndarray:
    """The gradient of the loss by log p, of up to 200 episodes of an expert with one token each."""
    column = lambda values: np.resize(values, (EPISODES, 1))  # noqa: E731
    arrays = {
        "logprobs": column(np.log(p)),
        "old_logprobs": column(0.0),
        "advantages": column(advantages),
        "loss_mask": np.arange(EPISODES)[:, None] < len(p),
        "segment_ids": column(1).astype(np.int32),
        "entropies": column(1.0),
        "expert": column(1.0),
    }
    return ours(arrays, GRPO(), MixtureConfig(**keys))[1][0][: len(p), 0] * len(p)


@pytest.mark.slow
def test_where_an_advantage_is_negative_only_likely_tokens_have_a_gradient() -> None:
    p = np.linspace(0.0025, 0.9975, EPISODES)
    bad = expert_gradient(p, np.full(EPISODES, -1.0))
    assert np.array_equal(bad != 0, p > 0.8) and 30 < np.count_nonzero(bad) < 50
    np.testing.assert_allclose(bad[p > 0.8], p[p > 0.8], rtol=1e-10)
    np.testing.assert_allclose(expert_gradient(p, np.ones(EPISODES)), -p, rtol=1e-10)
    assert expert_gradient(p, np.full(EPISODES, -1.0), clip=False).all()  # without the clip all of them are pushed down


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.001, 0.01, 0.1])
def test_shaping_raises_the_rate_of_unlikely_tokens_by_ten_at_most(p: float) -> None:
    rate = -expert_gradient(np.array([p]), np.ones(1), shape="luffy", clip=False)[0]
    assert rate == pytest.approx(0.1 * p / (p + 0.1) ** 2) and 1 < rate / p < 10
    assert -expert_gradient(np.array([p]), np.ones(1), shape="log", clip=False)[0] == pytest.approx(1)


def test_what_all_searches_do_alike_is_learnt_through_the_clip_alone() -> None:
    """Advantages of a sample add up to 0. Of a token with the same p in all searches, the clip leaves p times the positive."""
    advantages = group_advantages([1.0, 1.0, 0.7, 0.2, 0.2, 0.0], ["a"] * 6).astype(float)
    assert abs(advantages.sum()) < 1e-6
    for p in (0.001, 0.1, 0.79):
        alike = expert_gradient(np.full(6, p), advantages)
        assert -alike.sum() == pytest.approx(p * advantages[advantages > 0].sum(), rel=1e-9)
    assert abs(expert_gradient(np.full(6, 0.9), advantages).sum()) < 1e-6
    assert abs(expert_gradient(np.full(6, 0.1), advantages, clip=False).sum()) < 1e-6


def test_searches_that_are_worth_the_same_have_no_gradient() -> None:
    advantages = group_advantages([0.7, 0.7, 0.7], ["a"] * 3)
    assert not expert_gradient(np.array([0.1, 0.5, 0.95]), advantages).any()


@pytest.mark.parametrize(
    "keys",
    [
        dict(gamma=0.0),
        dict(shape="log", clip=True),
        dict(weight=-1.0),
        dict(weight=0.0),
        dict(mu_valley=0.1, mu_peak=1.1),
        dict(mu_peak=0.1, mu_valley=0.1, mu_decay=-1),
        dict(mu_peak=0.1),
        dict(token_weight="phi"),
        dict(supervise="right"),
    ],
)
def test_mixtures_that_contradict_themselves_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"objective.experts.*{list(keys)[-1]}"):
        MixtureConfig(**keys)
