"""Splits a model into trainable and frozen parameters. Frozen parameters have no gradient and no optimizer moments."""

import dataclasses
from typing import Any

import jax

from vitar_jax.errors import ConfigError
from vitar_jax.models.family import MASK_PARTS, PARTS, Part
from vitar_jax.models.lora import LoraConfig, add_lora
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import family_of


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters are trainable.

    Attributes:
      parts: Trainable parts. A model with tied embeddings has no part `head`.
      frozen_dtype: Type of frozen weights.
      lora: Adapters that are trained instead of the parts' own weights. The parts that make masks have none: their own weights
        are trained, as in Sa2VA's recipe.
      seed: Seed of the adapters' random weights.
    """

    parts: tuple[Part, ...] = PARTS
    frozen_dtype: str = "float32"
    lora: LoraConfig | None = None
    seed: int = 0

    def prepare(self, model: Any) -> Any:
        """Returns the model with its adapters, if any, and its frozen weights in their type.

        Raises:
          ConfigError: If no parameter is trainable, or a part is not the model's.
        """
        own = {part for _, part in family_of(model.config).parts}
        parts = [part for part in (*PARTS, *MASK_PARTS) if part in own]
        if strange := [part for part in self.parts if part not in (*parts, *PARTS)]:
            raise ConfigError(f"train: got {', '.join(strange)}, expected parts of this model: {', '.join(parts)}")
        if self.lora is not None:
            part_of, adapted = family_of(model.config).part_of, {*self.parts}.difference(MASK_PARTS)
            model = add_lora(model, self.lora, jax.random.key(self.seed), lambda path: part_of(path) in adapted)
        learnt, frozen = self.split(model)
        if not jax.tree.leaves(learnt):
            raise ConfigError(f"train: {self.parts} selects no parameters of this model; choose from {', '.join(parts)}")
        return join(learnt, jax.tree.map(lambda leaf: leaf.astype(self.frozen_dtype), frozen))

    def split(self, model: Any) -> tuple[Any, Any]:
        """Returns the trainable and the frozen half of a model, each with None in place of the other's leaves."""
        leaves, structure = jax.tree.flatten(model)
        part_of, whole = family_of(model.config).part_of, PARTS if self.lora is None else ()
        learns = [
            (part := part_of(path)) in self.parts and (part in (*whole, *MASK_PARTS) or "/lora/" in path)
            for path, _ in leaf_paths(model)
        ]
        learnt = [leaf if yes else None for leaf, yes in zip(leaves, learns, strict=True)]
        frozen = [None if yes else leaf for leaf, yes in zip(leaves, learns, strict=True)]
        return jax.tree.unflatten(structure, learnt), jax.tree.unflatten(structure, frozen)


def join(learnt: Any, frozen: Any) -> Any:
    """Returns the model from its two halves."""
    return jax.tree.map(lambda a, b: b if a is None else a, learnt, frozen, is_leaf=lambda leaf: leaf is None)
