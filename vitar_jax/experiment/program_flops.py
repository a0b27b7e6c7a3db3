"""Counts the operations of a recipe's programs from their sizes."""

import collections
import dataclasses

from vitar_jax.experiment.programs import MASK_NAMES, Programs
from vitar_jax.experiment.recipe import StageConfig
from vitar_jax.models.family import MASK_PARTS, Part
from vitar_jax.models.flops import PartFlops, head_flops, step_flops, text_flops
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import family_of
from vitar_jax.processing.packing import BatchShape


def program_flops(programs: Programs, name: str, stage: StageConfig, *, reach: int | None = None) -> int:
    """Returns the operations of one run of a program on all chips; see `models/flops.py`.

    Args:
      reach: Number of cache positions that prefill or decode reads of each slot. If None, all.
    """
    text, rollout, capacity = programs.config.text, programs.recipe.rollout, reach or programs.recipe.limits.tokens
    if name == "train":
        return _train_flops(programs, stage)
    if name == "reshard":
        return 0
    if name in MASK_NAMES:
        return _mask_flops(programs, name)
    new, rows = rollout.chunk_tokens, rollout.slots
    if name == "prefill":
        new, rows = max(rollout.prefill_lengths), programs.prefill_rows
    # Attention covers all positions that are read, however full they are.
    whole = text_flops(text, rows=1, tokens=capacity) * new // capacity
    return rows * whole + head_flops(text, tokens=rows * (1 if name == "prefill" else new))


def _mask_flops(programs: Programs, name: str) -> int:
    """Returns the operations of a call of `maps`, or of a call of `masks` whose turns all have the maximum number of masks."""
    turns = programs.mask_rows
    of_masks = {"mask_entries": turns, "masks": turns * programs.recipe.rollout.turn_masks}
    counts = {"mask_images": programs.slot_shards} if name == "maps" else of_masks
    of_language = dict(images=0, windows=0, window_patches=0, rows=0, tokens=0, scored_tokens=0)
    products = family_of(programs.config).products(programs.config, **of_language, **counts)
    return sum(counted.weights + counted.attention for counted in products.values())


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
        **_learnt_masks(shape),
    )
    adapters: collections.Counter[Part] = collections.Counter()
    for path, leaf in leaf_paths(programs.train_state(stage).model):
        if "/lora/" in path:
            part = family.part_of(path)
            adapters[part] += 2 * products[part].rows * leaf.size

    def learns(part: Part) -> bool:
        # A tied head is trained with the embeddings.
        trained = "embeddings" if part == "head" and programs.config.text.tie_word_embeddings else part
        return trained in stage.train and (stage.lora is None or part in MASK_PARTS or adapters[part] > 0)

    parts = [PartFlops(counted.weights, learns(part), counted.attention, adapters[part]) for part, counted in products.items()]
    passes = stage.objective.passes
    # Scoring makes no masks.
    scored = [of for part, of in zip(products, parts, strict=True) if part not in MASK_PARTS]
    forward = sum(part.weights + part.attention + part.adapters for part in scored)
    return passes.epochs * step_flops(parts) + passes.scorings * forward


def _learnt_masks(shape: BatchShape) -> dict[str, int]:
    """Returns the counts of masks in a batch, as `Family.products` takes them; empty if no masks are learnt."""
    masks = shape.masks
    if masks is None:
        return {}
    entries = shape.bins * masks.entries
    return {"mask_images": shape.bins * masks.images, "mask_entries": entries, "masks": entries * masks.masks}
