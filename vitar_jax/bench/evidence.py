"""Benchmark of interventions: what each costs an image beside decoding it, and what three of them cost a probe.

An intervention changes an image that is already decoded, as in a probe, where episodes decode images anyway. Its time is
compared with that of decoding the image's file.
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitar_jax.bench.images import list_images, make_images
from vitar_jax.bench.pairs import Pair, Row, aligned, run_pair, seconds
from vitar_jax.data.interventions import Given, find_change
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.cli import duration

INTERVENTIONS = ("blank", "wrong_image", "region_erased", "region_only", "erased:67", "erase_elsewhere", "flip", "blur:8")
PROBED = ("blank", "wrong_image", "region_erased")
_TARGET = 1.0  # least speed of an intervention, relative to decoding


def changing(folder: Path | None, *, count: int, rounds: int) -> list[Row]:
    """Times each intervention on images with a box alternately with decoding their files, which is the peer of each row.

    Args:
      folder: Folder of images. If None, generates JPEGs with the size of chest X-rays.
      count: Number of images.

    Raises:
      ImageError: If the folder holds no images.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = list_images(folder, count) if folder else make_images(Path(scratch), count)
        images = [open_image(file) for file in files]
        samples = [_with_box(file.name, image) for file, image in zip(files, images, strict=True)]
        other = Sample("other", "", (Image.effect_noise(images[0].size, 50),), "")  # also one image borrows another
        given = Given([*samples, other], len(samples) + 1)
        return [run_pair(_pair(name, files, samples, given), rounds) for name in INTERVENTIONS]


def _with_box(name: str, image: Image.Image) -> Sample:
    """Returns a sample with a box of a fifth of the image's sides."""
    x, y = np.random.default_rng(list(name.encode())).uniform(0, 0.8, 2) * image.size
    box = Box(x, y, x + image.width / 5, y + image.height / 5, "original")
    return Sample(name, "", (image,), "", boxes=(box,))


def _pair(name: str, files: Sequence[Path], samples: Sequence[Sample], given: Given) -> Pair:
    change = find_change(name, given)
    return Pair(
        name=name,
        size=f"{len(files)} images",
        ours=lambda: [change(sample) for sample in samples],
        peer=lambda: [open_image(file) for file in files],
        target=_TARGET,
        items=len(files),
    )


def table(rows: Sequence[Row]) -> str:
    """Formats the seconds that each intervention and decoding take per image."""
    lines = [["intervention", "per image", "decoding", "of decoding (range)", "target"]]
    for row in rows:
        changed, decoded = (duration(statistics.median(side) / row.pair.items) for side in (row.ours_seconds, row.peer_seconds))
        shares = [1 / ratio for ratio in row.ratios]
        spread = f"{1 / row.ratio:.0%} ({min(shares):.0%} to {max(shares):.0%})"
        lines.append([row.pair.name, changed, decoded, spread, f"at most 100% {'met' if row.met else 'MISSED'}"])
    return aligned(lines)


def probed_stage(recipe: Recipe) -> str:
    """Returns the last stage of the schedule that has probes.

    Raises:
      ConfigError: If there is none.
    """
    for name in reversed(recipe.schedule):
        if recipe.stages[name].probe_every:
            return name
    raise ConfigError("--config: no stage of the schedule has probes")


def probing(recipe: Recipe, name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Plays the probe of a stage with and without interventions, from the stage's pretrained or random weights.

    Random weights write turns up to their limit, so with them a probe costs more than with those of a trained model.

    Returns:
      `plain` and `changed`: `seconds` (median) and `tokens` (prefilled and sampled) of a probe, and `samples` that it plays.
    """
    stage = replace(recipe.stages[name], start="")
    run = Run(recipe, folder)
    state = run.initial_state(stage)
    found: dict[str, Any] = {"stage": name, "samples": stage.probe_samples, "interventions": PROBED}
    for key, interventions in (("plain", ()), ("changed", PROBED)):
        probe = run.probe(name, replace(stage, probe_interventions=interventions))
        assert probe is not None
        play = partial(probe, state)
        play()  # compiles
        run.engine.stats.reset()
        taken = [seconds(play) for _ in range(rounds)]
        stats = run.engine.stats
        tokens = (stats.prefilled + stats.sampled) / rounds
        found[key] = {"seconds": statistics.median(taken), "tokens": tokens}
    return found


def probe_text(found: dict[str, Any]) -> str:
    """Formats the result of `probing`."""
    plain, changed = found["plain"], found["changed"]
    return (
        f"A probe of {found['samples']} samples of stage {found['stage']} plays {plain['tokens']:,.0f} tokens in "
        f"{plain['seconds']:.2f} s. With {', '.join(found['interventions'])}, it plays {changed['tokens']:,.0f} in "
        f"{changed['seconds']:.2f} s: {changed['tokens'] / plain['tokens']:.2f} times the tokens, "
        f"{changed['seconds'] / plain['seconds']:.2f} times the time."
    )
