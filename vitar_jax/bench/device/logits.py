"""Checks the logits of tiny models against those of Hugging Face's modules, which are stored beside this file.

    python -m vitar_jax.bench.device.reference

has made the file, from the same weights and inputs. numpy draws both, so they are the same on every device.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitar_jax.bench.cases import TINY, Case, make_inputs
from vitar_jax.bench.device.parts import Check
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import abstract_model

REFERENCE = Path(__file__).with_name("logits.npz")  # fp32 [rows, V] of each case of `TINY`, by its name
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}  # the former is that of the tests of the model, the latter that of `bench model`


def check_logits(attention: str) -> list[Check]:
    """Checks the logits of each tiny model: in fp32 by products and softmax, and in bf16 by a back end of attention."""
    checks = []
    with np.load(REFERENCE) as stored:
        for name, case in TINY.items():
            for dtype, back_end in (("float32", "xla"), ("bfloat16", attention)):
                logits, right = np.asarray(last_logits(case, dtype, back_end)), stored[name]
                error = float(np.linalg.norm(logits - right) / np.linalg.norm(right))
                checks.append(Check(f"logits of {name}, {dtype}, {back_end}", error, LIMITS[dtype]))
    return checks


def last_logits(case: Case, dtype: str, attention: str) -> Float[Array, "B V"]:
    """Returns the logits of each row's last token. Products of fp32 are exact, also where a device would round them."""
    config = dataclasses.replace(case.config, dtype=dtype, attention=attention)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights_of(config))
    batch = jax.tree.map(jnp.asarray, make_inputs(case).batch)

    @jax.jit
    def run(model: Any, inputs: Mapping[str, Any]) -> jax.Array:
        hidden = model(**inputs)[0, :, -1]
        return (hidden @ model.head().astype(hidden.dtype)).astype(jnp.float32)

    with jax.default_matmul_precision("highest"):
        return run(weights, batch.inputs)


def weights_of(config: Any) -> Any:
    """Returns a model whose weights numpy draws: uniform, and scaled so that activations and logits stay near 1."""
    rng, model, leaves = np.random.default_rng(0), abstract_model(config), []
    for path, leaf in leaf_paths(model):
        drawn = rng.random(leaf.shape, np.float32) * 2 - 1
        if path.endswith("kernel"):
            leaves.append(drawn * math.sqrt(3 / leaf.shape[-2]))
        elif "embed" in path:
            leaves.append(drawn * math.sqrt(3 / leaf.shape[-1]))
        else:  # norms and biases
            leaves.append(drawn / 8 + path.endswith("weight"))
    return jax.tree.unflatten(jax.tree.structure(model), leaves)
