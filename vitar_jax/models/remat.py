"""What the backward pass keeps of a layer and what it computes again: named policies, from most memory to least.

    none       keeps everything
    dots       keeps every product with a weight; computes norms, rotations, softmax and activations again
    attention  keeps what attention reads and returns; computes the rest again, the MLP most of all
    layer      keeps the layer's input and computes all of it again

Gradients are the same under all of them.
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
    """Raises ConfigError, with the config key, unless `name` is a policy."""
    if name not in POLICIES:
        raise ConfigError(f"{key}: {name!r} is not one of {', '.join(POLICIES)}")


def recompute(apply: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """`apply(layer, x, kind)` with what it keeps for its backward pass cut down to the policy; `kind` is static."""
    if policy == "none":
        return apply
    return jax.checkpoint(apply, policy=_POLICIES[policy], static_argnums=2)


def inputs_kept(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A function whose backward pass keeps its inputs, and none of what it makes on the way."""
    return jax.checkpoint(function, prevent_cse=False)


def attention_value(x: jax.Array) -> jax.Array:
    """Marks a value that policy `attention` keeps."""
    return checkpoint_name(x, ATTENTION)
