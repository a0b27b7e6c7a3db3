"""Benchmark of memory over a long run: the memory of a process at each step of GRPO on questions about eight images.

The recipe's last stage that plays episodes is trained from random weights by the run that `vitar_jax.train` makes, with its
log, probes and checkpoints. Only its questions differ: each has eight images of its own, so that images which a step leaves
behind would add up to far more than the target.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError
from vitar_jax.evaluation.figures import curves_figure
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.runtime.crash_safe import read_json_lines
from vitar_jax.runtime.memory import anonymous_memory

RISE = 0.01  # target: share of the memory after the warm-up that is added until the end
IMAGES = 8
_SIDE = 256  # pixels of an image
_WARM_UP = 100  # steps in which programs are compiled and probes and checkpoints first run


class Questions:
    """A data set of questions that all have images of their own."""

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: SupportsIndex, /) -> Sample:
        number = int(index)
        rng = np.random.default_rng(number)
        images = [Image.fromarray(rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)) for _ in range(IMAGES)]
        options = tuple((letter, side) for letter, side in zip("ABCD", ("left", "right", "both", "none"), strict=True))
        box = Box(0.0, 0.0, _SIDE / 2, _SIDE / 2, "original")
        return Sample(f"question-{number}", "Where is it?", tuple(images), "A", options, (box,))


def questions(split: str) -> Questions:
    """Returns the data set, whatever the split."""
    del split
    return Questions()


def played_stage(recipe: Recipe) -> str:
    """Returns the last stage of the schedule that plays episodes.

    Raises:
      ConfigError: If there is none.
    """
    for name in reversed(recipe.schedule):
        if recipe.stages[name].objective.plays:
            return name
    raise ConfigError("--config: no stage of the schedule plays episodes")


def measure(recipe: Recipe, name: str, folder: Path, steps: int) -> list[float]:
    """Trains a stage for `steps` steps and returns the memory (MiB) of this process after each, as the run logs it.

    Raises:
      ConfigError: If the system is not Linux.
    """
    if anonymous_memory() is None:
        raise ConfigError("memory: only Linux tells the memory of a process")
    Run(with_eight_images(recipe, name, steps), folder).train()
    return [1024 * row["perf/host_memory_gib"] for row in read_json_lines(folder / name / "metrics.jsonl", dict)]


def with_eight_images(recipe: Recipe, name: str, steps: int) -> Recipe:
    """Returns a recipe that trains one stage from random weights on `Questions`, with room for their images."""
    windows, patches = recipe.processor.size_classes[-1]
    more = IMAGES - 1
    tokens = recipe.limits.tokens + more * (windows * patches // 4 + 2)  # 2 x 2 patches per token, and the marks of an image
    limits = dataclasses.replace(recipe.limits, tokens=tokens, images=recipe.limits.images + more)
    source = SourceConfig(f"{__name__}:questions")
    stage = dataclasses.replace(
        recipe.stages[name], start="", steps=steps, log_every=1, sources={"questions": source}, tokens=0, row_images=0
    )
    return dataclasses.replace(recipe, limits=limits, stages={name: stage}, schedule=(name,))


def summarize(resident: Sequence[float]) -> dict[str, Any]:
    """Compares the medians of two windows, each a tenth of the steps after the warm-up: right after it, and at the end.

    The warm-up is 100 steps, or half of a shorter run.
    """
    first = min(_WARM_UP, len(resident) // 2)
    width = max(1, (len(resident) - first) // 10)
    before, after = (statistics.median(part) for part in (resident[first : first + width], resident[-width:]))
    rise = after / before - 1
    return {"steps": len(resident), "warm_up": first, "before": before, "after": after, "rise": rise, "met": rise < RISE}


def report(found: dict[str, Any], stage: str) -> str:
    """Formats the result of `summarize`."""
    return (
        f"stage {stage}, {found['steps']} steps with {IMAGES} images per group: {found['before']:,.0f} MiB resident after "
        f"{found['warm_up']} steps, {found['after']:,.0f} MiB at the end: {found['rise']:+.2%} "
        f"(target under {RISE:.0%}: {'met' if found['met'] else 'MISSED'})"
    )


def figure(resident: Sequence[float], path: Path) -> None:
    """Draws the resident memory by step."""
    curves_figure({"memory, MiB": {"resident": list(enumerate(resident))}}, path)
