"""Benchmark of steps that learn from an expert: its episodes per second, and a step's waiting, time and memory.

A step of 8 own episodes and 6 of an expert per sample is timed beside one of 14 own episodes, from the recipe's pretrained or
random weights. Random weights write turns up to their limit, so with them own episodes cost more than those of a trained model.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vitar_jax.data.pipeline import sample_stream
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.experiment.trainer import Run
from vitar_jax.learning.experts import ExpertStream
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.grpo_batches import grpo_batch
from vitar_jax.rollout.player import Player

WAITING, RATIO = 0.05, 0.9  # targets: share of a step that waits, and time of a step beside one of own episodes
GROWTH = 0.02  # target: by how much memory may grow over 1,000 steps, which covers the allocator's fluctuations
_WARM_UP = 2  # steps that compile


def expert_stage(recipe: Recipe) -> str:
    """Returns the last stage of the schedule that learns from an expert's traces.

    Raises:
      ConfigError: If there is none.
    """
    for name in reversed(recipe.schedule):
        objective = recipe.stages[name].objective
        if isinstance(objective, GRPO) and objective.experts is not None and objective.experts.traces:
            return name
    raise ConfigError("--config: no stage of the schedule has experts with traces")


def playing(recipe: Recipe, name: str, folder: Path, samples: int) -> float:
    """Returns the expert's episodes per second from traces to packed rows, on one thread."""
    stage, run = recipe.stages[name], Run(recipe, folder)
    objective = stage.objective
    assert isinstance(objective, GRPO) and objective.experts is not None
    no_weights: Any = None  # the player only begins and records episodes
    player = Player(run.engine, recipe.all_protocols[stage.protocol], no_weights)
    stream = sample_stream(list(stage.sources.values()), seed=0)
    groups = [[player.begin(stream[number])] for number in range(samples)]
    experts = ExpertStream(objective.experts, 0)
    one = dataclasses.replace(stage, batch_size=samples)
    shape = build.batch_shape(recipe, one, bins=1, shards=1)
    with ThreadPoolExecutor(1) as pool:
        experts.finish(experts.start(groups[:1], 0, pool))
        began = time.perf_counter()
        played = [episode for group in experts.finish(experts.start(groups, 1, pool)) for episode, _ in group.episodes]
        records = [dataclasses.replace(player.record(episode, stream="expert"), advantage=0.0) for episode in played]
        grpo_batch(played, records, objective, shape, run.processor)
    return len(played) / (time.perf_counter() - began)


def stepping(recipe: Recipe, name: str, folder: Path, steps: int) -> dict[str, float]:
    """Returns the median seconds of a step with the expert and of one with own episodes alone, and the share that waits.

    On Linux, also the memory of the process after the steps with the expert, and its growth.
    """
    stage = recipe.stages[name]
    objective = stage.objective
    assert isinstance(objective, GRPO)
    own = dataclasses.replace(objective, group_size=objective.rows_per_sample, experts=None)
    beside, alone = (_rows(recipe, name, stage, one, folder / label, steps) for label, one in (("e", objective), ("o", own)))
    seconds, own_seconds = (statistics.median(row["timing_s/step"] for row in rows) for rows in (beside, alone))
    waiting = float(np.sum([row["timing_s/experts"] for row in beside]) / np.sum([row["timing_s/step"] for row in beside]))
    found = {"step_seconds": seconds, "own_step_seconds": own_seconds, "ratio": seconds / own_seconds, "waiting": waiting}
    held = [row["perf/host_memory_gib"] for row in beside if "perf/host_memory_gib" in row]
    return found | ({"memory_gib": held[-1], "memory_growth": growth(held), "steps": len(held)} if held else {})


def growth(memory: Sequence[float]) -> float:
    """Returns by which fraction memory grows from the end of the first quarter of the steps to their last tenth.

    Both are medians over a tenth of the steps. Caches fill and programs compile in the first quarter.
    """
    width = max(1, len(memory) // 10)
    quarter = len(memory) // 4
    return statistics.median(memory[-width:]) / statistics.median(memory[quarter : quarter + width]) - 1


def _rows(
    recipe: Recipe, name: str, stage: StageConfig, objective: GRPO, folder: Path, steps: int
) -> list[dict[str, float]]:
    """Trains a stage for a few steps and returns the metrics of those after the warm-up."""
    count = _WARM_UP + steps
    quiet = dict(log_every=1, probe_every=0, keep_trajectories=0, checkpoint_every=count)
    changed = dataclasses.replace(stage, start="", steps=count, objective=objective, **quiet)
    Run(dataclasses.replace(recipe, stages={name: changed}, schedule=(name,)), folder).train()
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[_WARM_UP:]]


def table(found: dict[str, float], stage: str) -> str:
    """Formats the measurements with their targets."""
    lines = [
        f"stage {stage}: {found['expert_episodes_per_second']:,.0f} of the expert's episodes per second, traces to rows",
        f"a step takes {found['step_seconds']:.3f} s, and {found['own_step_seconds']:.3f} s with as many own episodes: "
        f"{found['ratio']:.2f} of it (target at most {RATIO:g})",
        f"{found['waiting']:.1%} of a step waits for the expert's episodes (target under {WAITING:.0%})",
    ]
    if "memory_gib" in found:
        lines.append(
            f"the process takes {found['memory_gib']:.2f} GiB after {found['steps']:,} steps, {found['memory_growth']:+.1%} "
            f"since a quarter of them (target over 1,000: at most {GROWTH:.0%})"
        )
    return "\n".join(lines)
