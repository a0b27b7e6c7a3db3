"""Rematerialisation: what the backward pass keeps of a layer and what it recomputes, from most memory to least.

    none       keeps everything
    dots       keeps products with weights; recomputes norms, rotations, softmax and activations
    attention  keeps what attention reads and returns; recomputes the rest, mostly the MLP
    layer      keeps the layer's input and recomputes everything

Gradients are the same under all policies.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from vitar_jax.errors import ConfigError

ATTENTION = "attention"  # names the values that the policy of that name keeps

_POLICIES: Mapping[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENTION),
    "layer": jax.checkpoint_policies.nothing_saveable,
}
POLICIES = tuple(_POLICIES)


def check_policy(name: str, key: str) -> None:
    """Raises ConfigError, which names the config key, unless `name` is a policy."""
    if name not in POLICIES:
        raise ConfigError(f"{key}: got {name!r}, expected one of {', '.join(POLICIES)}")


def recompute(apply: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """Returns `apply(layer, x, kind)` with the policy applied to its backward pass; `kind` is static."""
    if policy == "none":
        return apply
    return jax.checkpoint(apply, policy=_POLICIES[policy], static_argnums=2)


def inputs_kept(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns the function with a backward pass that keeps its inputs and recomputes everything between."""
    return jax.checkpoint(function, prevent_cse=False)


def attention_value(x: jax.Array) -> jax.Array:
    """Marks a value for policy `attention` to keep."""
    return checkpoint_name(x, ATTENTION)
