"""How many floating-point operations the model's mathematics asks for, counted from its sizes.

Only matrix products count, two operations a multiply-add. Causal attention is counted in full, as if every token looked
at every other of its row; what a remat policy computes again is not counted. A rate over these numbers is model FLOP
utilisation (Chowdhery et al., 2022, appendix B).
"""

import dataclasses
from collections.abc import Iterable

from vitar_jax.models.config import TextSizes

BACKWARD = 2  # each product is two in the backward pass: for its input and for its weight


def text_flops(config: TextSizes, *, rows: int, tokens: int) -> int:
    """Forward pass of the decoder over `rows` rows of `tokens` tokens, without the head."""
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    projections = config.hidden_size * (2 * heads + 2 * kv_heads)
    mlp = 3 * config.hidden_size * config.intermediate_size
    weights = 2 * rows * tokens * config.num_hidden_layers * (projections + mlp)
    return weights + text_attention_flops(config, rows=rows, tokens=tokens)


def text_attention_flops(config: TextSizes, *, rows: int, tokens: int) -> int:
    """Those of them that are scores and means of values, without a weight."""
    return 2 * rows * tokens * config.num_hidden_layers * 2 * tokens * config.num_attention_heads * config.head_dim


def head_flops(config: TextSizes, *, tokens: int) -> int:
    """Logits of `tokens` tokens."""
    return 2 * tokens * config.hidden_size * config.vocab_size


@dataclasses.dataclass(frozen=True)
class Products:
    """Matrix products of one part of a model in a forward pass.

    Attributes:
      rows: Number of vectors that each projection of the part is applied to.
      weights: Operations with weights.
      attention: Operations without weights: attention logits and weighted means of values.
    """

    rows: int
    weights: int
    attention: int = 0


@dataclasses.dataclass(frozen=True)
class PartFlops:
    """Forward pass of one part of a model: products with its weights, those of attention, those with adapters.

    `learns`: the weights do, or in their place the adapters if it has any.
    """

    weights: int
    learns: bool
    attention: int = 0
    adapters: int = 0


def step_flops(parts: Iterable[PartFlops]) -> int:
    """Forward and backward pass of parts, each after those that it reads.

    A gradient goes back as far as the first part that learns, through all of it. There and behind it each product has one for
    its input and one for its other factor, unless that is a frozen weight.
    """
    total, reached = 0, False
    for part in parts:
        reached = reached or part.learns
        total += part.weights + part.attention + part.adapters
        if reached:
            frozen = part.adapters or not part.learns
            total += (1 if frozen else BACKWARD) * part.weights + BACKWARD * (part.attention + part.adapters)
    return total
