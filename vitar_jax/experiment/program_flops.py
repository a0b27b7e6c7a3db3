"""Counts the operations of a recipe's programs from their sizes."""

import collections
import dataclasses

from vitar_jax.experiment.programs import Programs
from vitar_jax.experiment.recipe import StageConfig
from vitar_jax.models.family import Part
from vitar_jax.models.flops import PartFlops, head_flops, step_flops, text_flops
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import family_of


def program_flops(programs: Programs, name: str, stage: StageConfig) -> int:
    """Returns the operations of one run of a program on all chips; see `models/flops.py`."""
    text, rollout, capacity = programs.config.text, programs.recipe.rollout, programs.recipe.limits.tokens
    if name == "train":
        return _train_flops(programs, stage)
    if name == "reshard":
        return 0
    new, rows = rollout.chunk, rollout.slots
    if name == "prefill":
        new, rows = max(rollout.prefill_lengths), programs.prefill_rows
    # Attention covers the whole cache, however full it is.
    whole = text_flops(text, rows=1, tokens=capacity) * new // capacity
    return rows * whole + head_flops(text, tokens=rows * (1 if name == "prefill" else new))


def _train_flops(programs: Programs, stage: StageConfig) -> int:
    """Returns the operations of a train step, given its trainable parts and adapters."""
    family, shape = family_of(programs.config), programs.batch_shape(stage)
    products = family.products(
        programs.config,
        images=shape.bins * shape.images,
        **dataclasses.asdict(shape.size_class),
        rows=shape.bins * shape.rows,
        tokens=shape.tokens,
        scored_tokens=shape.bins * shape.policy_tokens,
    )
    adapters: collections.Counter[Part] = collections.Counter()
    for path, leaf in leaf_paths(programs.train_state(stage).model):
        if "/lora/" in path:
            part = family.part_of(path)
            adapters[part] += 2 * products[part].rows * leaf.size

    def learns(part: Part) -> bool:
        # A tied head is trained with the embeddings.
        trained = "embeddings" if part == "head" and programs.config.text.tie_word_embeddings else part
        return trained in stage.train and (stage.lora is None or adapters[part] > 0)

    parts = [PartFlops(counted.weights, learns(part), counted.attention, adapters[part]) for part, counted in products.items()]
    passes = stage.objective.passes
    forward = sum(part.weights + part.attention + part.adapters for part in parts)
    return passes.epochs * step_flops(parts) + passes.scorings * forward
