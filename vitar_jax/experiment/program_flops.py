"""How many operations the programs of a recipe are, from their sizes."""

import collections
import math

from vitar_jax.experiment.programs import Programs
from vitar_jax.experiment.recipe import StageConfig
from vitar_jax.learning.trainable import Part, part_of
from vitar_jax.models.flops import (
    PartFlops,
    head_flops,
    merger_flops,
    step_flops,
    text_attention_flops,
    text_flops,
    vision_attention_flops,
    vision_flops,
)
from vitar_jax.models.pretrained import leaf_paths


def program_flops(programs: Programs, name: str, stage: StageConfig) -> int:
    """Operations of one run of a program on all chips, from its sizes; see `models/flops.py`."""
    text, rollout, capacity = programs.config.text, programs.recipe.rollout, programs.recipe.limits.tokens
    if name == "train":
        return _train_flops(programs, stage)
    if name == "reshard":
        return 0
    new, rows = rollout.chunk, rollout.slots
    if name == "prefill":
        new, rows = max(rollout.extend_lengths), programs.prefill_rows
    # Attention looks over the whole cache, whatever it holds.
    whole = text_flops(text, rows=1, tokens=capacity) * new // capacity
    return rows * whole + head_flops(text, tokens=rows * (1 if name == "prefill" else new))


def _train_flops(programs: Programs, stage: StageConfig) -> int:
    """Of a train step, by the parts that learn and the adapters."""
    text, vision, shape = programs.config.text, programs.config.vision, programs.batch_shape(stage)
    size, rows = shape.size_class, shape.bins * shape.rows
    images = {"images": shape.bins * shape.images, "windows": size.windows, "window_patches": size.window_patches}
    patches, merged = math.prod(images.values()), vision.spatial_merge_size**2
    inputs: dict[Part, int] = {"vision": patches, "merger": patches // merged, "decoder": rows * shape.tokens}
    adapters: collections.Counter[Part] = collections.Counter()
    for path, leaf in leaf_paths(programs.train_state(stage).model):
        if "/lora/" in path:
            adapters[part_of(path)] += 2 * inputs[part_of(path)] * leaf.size

    def part(name: Part, weights: int, attention: int = 0) -> PartFlops:
        # Without a head of its own, the table of embeddings is one.
        learns = ("embeddings" if name == "head" and text.tie_word_embeddings else name) in stage.train
        return PartFlops(weights, learns and (stage.lora is None or adapters[name] > 0), attention, adapters[name])

    of_images, merger = vision_attention_flops(vision, **images), merger_flops(vision, patches=patches)
    of_tokens = text_attention_flops(text, rows=rows, tokens=shape.tokens)
    parts = (
        part("vision", vision_flops(vision, **images) - of_images - merger, of_images),
        part("merger", merger),
        part("embeddings", 0),
        part("decoder", text_flops(text, rows=rows, tokens=shape.tokens) - of_tokens, of_tokens),
        part("head", head_flops(text, tokens=shape.bins * shape.policy_tokens)),
    )
    passes = stage.objective.passes
    forward = sum(part.weights + part.attention + part.adapters for part in parts)
    return passes.epochs * step_flops(parts) + passes.scorings * forward
