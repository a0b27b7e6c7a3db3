"""Floating-point operations of a model, counted from its sizes.

Only matrix products count, as two operations per multiply-add. Causal attention is counted in full, as if every token
attended to every token of its row. Recomputation by a remat policy is not counted. Operations per second by this count are
model FLOP utilisation (Chowdhery et al., 2022, appendix B).
"""

import dataclasses
from collections.abc import Iterable

from vitar_jax.models.config import TextSizes

BACKWARD = 2  # each product has two in the backward pass, for the gradients of its input and of its weight


def text_flops(config: TextSizes, *, rows: int, tokens: int) -> int:
    """Returns the operations of the decoder's forward pass over `rows` rows of `tokens` tokens, without the head."""
    heads, kv_heads = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    projections = config.hidden_size * (2 * heads + 2 * kv_heads)
    mlp = 3 * config.hidden_size * config.intermediate_size
    weights = 2 * rows * tokens * config.num_hidden_layers * (projections + mlp)
    return weights + text_attention_flops(config, rows=rows, tokens=tokens)


def text_attention_flops(config: TextSizes, *, rows: int, tokens: int) -> int:
    """Returns the share of `text_flops` without weights: attention logits and weighted means of values."""
    return 2 * rows * tokens * config.num_hidden_layers * 2 * tokens * config.num_attention_heads * config.head_dim


def head_flops(config: TextSizes, *, tokens: int) -> int:
    """Returns the operations of the logits of `tokens` tokens."""
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
    """Operations of one part of a model in a forward pass.

    Attributes:
      weights: Products with weights.
      learns: Whether the part is trained: its adapters if it has any, else its weights.
      attention: Products without weights.
      adapters: Products with adapters.
    """

    weights: int
    learns: bool
    attention: int = 0
    adapters: int = 0


def step_flops(parts: Iterable[PartFlops]) -> int:
    """Returns the operations of a forward and a backward pass over parts, each listed after the parts that it reads.

    Gradients reach back to the first trained part, through all of it. From there on, the backward pass has one product for the
    gradient of each product's input, and one for the gradient of its other factor unless that is a frozen weight.
    """
    total, reached = 0, False
    for part in parts:
        reached = reached or part.learns
        total += part.weights + part.attention + part.adapters
        if reached:
            frozen = part.adapters or not part.learns
            total += (1 if frozen else BACKWARD) * part.weights + BACKWARD * (part.attention + part.adapters)
    return total
