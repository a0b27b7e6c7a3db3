"""Remat policies: the same gradients from less and less memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.errors import ConfigError
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.registry import config_from_hf
from vitar_jax.models.remat import POLICIES
from vitar_jax.processing.packing import BatchShape, pack

PROCESSOR = tiny.processor(12)


def inputs_of_a_batch() -> dict[str, Any]:
    examples = [tiny.example(str(i), [noise(112, 84, seed=i), "What is it? " * 8], PROCESSOR) for i in range(4)]
    return pack(examples, BatchShape(1, 4, 160, 4, PROCESSOR.size_classes[0], 400), PROCESSOR).inputs


def compile_gradient(policy: str) -> tuple[Any, Qwen2_5_VL, dict[str, Any]]:
    model, inputs = tiny.with_config(tiny.pretrained()[1], remat=policy), inputs_of_a_batch()

    @jax.jit
    @jax.grad
    def gradient(model: Qwen2_5_VL, inputs: dict[str, Any]) -> jax.Array:
        return jnp.mean(model(**inputs) ** 2)

    with jax.default_matmul_precision("highest"):
        return gradient.lower(model, inputs).compile(), model, inputs


@pytest.fixture(scope="module")
def gradients() -> dict[str, tuple[Any, int]]:
    """Policy -> gradient, and bytes that its program needs beside arguments and results."""
    found = {}
    for policy in POLICIES:
        compiled, model, inputs = compile_gradient(policy)
        found[policy] = compiled(model, inputs), compiled.memory_analysis().temp_size_in_bytes
    return found


@pytest.mark.slow
@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "none"])
def test_a_policy_changes_no_gradient(policy: str, gradients: dict[str, tuple[Any, int]]) -> None:
    expected = dict(leaf_paths(gradients["none"][0]))
    for path, gradient in leaf_paths(gradients[policy][0]):
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-4, atol=1e-5 * scale, err_msg=path)


@pytest.mark.slow
def test_policies_go_from_most_memory_to_least(gradients: dict[str, tuple[Any, int]]) -> None:
    sizes = [gradients[policy][1] for policy in POLICIES]
    assert all(more > 1.1 * less for more, less in zip(sizes, sizes[1:], strict=False)), dict(zip(POLICIES, sizes, strict=True))


@pytest.mark.parametrize("name", ["everything", "None", True])
def test_an_unknown_policy_is_told_the_known_ones(name: object) -> None:
    with pytest.raises(ConfigError, match=r"remat.*none, dots, attention, layer"):
        config_from_hf(tiny.hf_config().to_dict(), remat=name)
