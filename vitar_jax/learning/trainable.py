"""Which parts of a model learn, and how. What does not learn is frozen: it has no gradient and no moments."""

import dataclasses
from typing import Any

import jax

from vitar_jax.errors import ConfigError
from vitar_jax.models.family import PARTS, Part
from vitar_jax.models.lora import LoraConfig, add_lora
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import family_of


@dataclasses.dataclass(frozen=True)
class Learning:
    """What of a model learns.

    Attributes:
      parts: those that learn. A model whose head is its table of embeddings has no part `head`.
      frozen_dtype: type that frozen weights are kept in.
      lora: adapters that learn in place of the parts' own weights.
      seed: of the adapters.
    """

    parts: tuple[Part, ...] = PARTS
    frozen_dtype: str = "float32"
    lora: LoraConfig | None = None
    seed: int = 0

    def prepare(self, model: Any) -> Any:
        """The model with adapters, if there are to be any, and its frozen weights in their type.

        Raises:
          ConfigError: nothing of it would learn.
        """
        if self.lora is not None:
            part_of = family_of(model.config).part_of
            model = add_lora(model, self.lora, jax.random.key(self.seed), lambda path: part_of(path) in self.parts)
        learnt, frozen = self.split(model)
        if not jax.tree.leaves(learnt):
            raise ConfigError(f"train: {self.parts} is nothing of this model; parts are {', '.join(PARTS)}")
        return join(learnt, jax.tree.map(lambda leaf: leaf.astype(self.frozen_dtype), frozen))

    def split(self, model: Any) -> tuple[Any, Any]:
        """What learns and what is frozen: two models, each with None in the places of the other's leaves."""
        leaves, structure = jax.tree.flatten(model)
        part_of = family_of(model.config).part_of
        learns = [part_of(path) in self.parts and (self.lora is None or "/lora/" in path) for path, _ in leaf_paths(model)]
        learnt = [leaf if yes else None for leaf, yes in zip(leaves, learns, strict=True)]
        frozen = [None if yes else leaf for leaf, yes in zip(leaves, learns, strict=True)]
        return jax.tree.unflatten(structure, learnt), jax.tree.unflatten(structure, frozen)


def join(learnt: Any, frozen: Any) -> Any:
    """The model of which these are the two halves."""
    return jax.tree.map(lambda a, b: b if a is None else a, learnt, frozen, is_leaf=lambda leaf: leaf is None)
