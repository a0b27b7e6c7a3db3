"""Benchmark of the input pipeline for a simulated TPU slice: batches per second, and time that a step waits for its batch.

The pipeline is that of the recipe's first supervised stage, from files to packed batches, for one host of the slice. A sleep
replaces the device: the FLOPs of a step (`program_flops`) at a given fraction of the slice's peak. The benchmark does not copy
batches to a device.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from vitar_jax.bench.pairs import aligned
from vitar_jax.data.pipeline import Share
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.programs import Programs
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.experiment.trainer import stage_feed
from vitar_jax.learning.objective import Batches
from vitar_jax.learning.sft import SFT
from vitar_jax.parallel.mesh import local_bins, make_mesh
from vitar_jax.parallel.topology import Topology
from vitar_jax.processing.packing import BatchShape
from vitar_jax.processing.processor import Processor
from vitar_jax.runtime.cli import duration

TARGET = 0.02  # maximum fraction of a step spent waiting for input
_SLACK = 2.0  # if this machine cannot keep up: length of a slower step, as a multiple of the time to make a batch


@dataclasses.dataclass(frozen=True)
class Host:
    """One host of a slice, and its part of a step.

    Attributes:
      share: The host's shard of the data.
      shape: Shape of the host's shard of a batch.
      step_seconds: Seconds per step of the slice, at `mfu` of its peak.
    """

    share: Share
    shape: BatchShape
    step_seconds: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measurement: consecutive batches, with a sleep of `step_seconds` after each.

    Attributes:
      threads: Number of threads of the pipeline.
      step_seconds: Seconds per simulated step. 0 means no sleep.
      wait: Seconds spent waiting for each batch.
      seconds: Total wall-clock time.
      core_seconds: Total CPU time.
      examples, tokens, bytes: Totals of all batches; `tokens` excludes padding.
    """

    threads: int
    step_seconds: float
    wait: tuple[float, ...]
    seconds: float
    core_seconds: float
    examples: int
    tokens: int
    bytes: int

    @property
    def waiting(self) -> float:
        """Fraction of the time spent waiting for batches."""
        return sum(self.wait) / self.seconds


def supervised_stage(recipe: Recipe) -> StageConfig:
    """Returns the recipe's first supervised stage. Other stages do not prefetch batches.

    Raises:
      ConfigError: If the recipe has no supervised stage.
    """
    stages = [stage for stage in map(recipe.stages.__getitem__, recipe.schedule) if isinstance(stage.objective, SFT)]
    if not stages:
        raise ConfigError("--config: the recipe has no supervised stage, and no other stage prefetches batches")
    return stages[0]


def host_of(recipe: Recipe, stage: StageConfig, topology: Topology, mfu: float) -> Host:
    """Returns the first host of a slice.

    Args:
      mfu: Fraction of the slice's peak FLOP/s that a step reaches.

    Raises:
      ConfigError: If the peak FLOP/s of the slice is unknown, or the recipe's mesh does not fit the slice.
    """
    if topology.chip is None:
        raise ConfigError(f"--topology={topology.name}: its peak FLOP/s is unknown; choose a TPU slice such as v5e:8x8")
    mesh = make_mesh(**dataclasses.asdict(recipe.mesh), devices=topology.devices)
    programs = Programs(recipe, build.model_config(recipe), mesh)
    flops = program_flops(programs, "train", stage)
    return Host(
        share=Share(0, len({device.process_index for device in topology.devices})),
        shape=programs.local_batch_shape(stage, local_bins(mesh)),
        step_seconds=flops / (len(topology.devices) * topology.chip.flops * mfu),
    )


def measure(
    recipe: Recipe,
    stage: StageConfig,
    processor: Processor,
    host: Host,
    *,
    threads: Sequence[int],
    steps: int,
    say: Callable[[str], None],
) -> list[Measured]:
    """Takes `steps` batches without pause, and again with the host's step time, for each number of threads.

    If making a batch takes longer than the step, also measures with a slower step that this machine can keep up with.
    """
    rows = []

    feed = stage_feed(recipe, stage, processor, host.shape, recipe.seed, host.share)

    def batches(threads: int) -> Batches:
        return stage.objective.batches(dataclasses.replace(feed, threads=threads))

    def take(number: int, step_seconds: float) -> float:
        """Appends a measurement to `rows` and returns its seconds per batch."""
        rows.append(_take(batches(number), number, step_seconds, steps))
        say(f"{number} threads, {_step(rows[-1])}: {rows[-1].waiting:.2%} of the time waiting for input")
        return rows[-1].seconds / steps

    for number in threads:
        seconds = take(number, 0.0)
        take(number, host.step_seconds)
        if seconds > host.step_seconds:
            take(number, _SLACK * seconds)
    return rows


def _take(batches: Batches, threads: int, step_seconds: float, steps: int) -> Measured:
    """Measures `steps` batches, after two unmeasured ones: a real run waits for its first batches while the step compiles."""
    state: Any = None  # supervised batches do not depend on the training state
    for _ in range(2):
        batches.next(state)
        time.sleep(step_seconds)
    wait, counted = [], np.zeros(3, int)
    began, began_core = time.perf_counter(), time.process_time()
    for _ in range(steps):
        batch, scalars = batches.next(state)
        wait.append(scalars["timing_s/batch"])
        time.sleep(step_seconds)
        segments = batch.segment_ids
        counted += segments.max(axis=-1).sum(), (segments > 0).sum(), sum(array.nbytes for array in jax.tree.leaves(batch))
    seconds, core_seconds = time.perf_counter() - began, time.process_time() - began_core
    return Measured(threads, step_seconds, tuple(wait), seconds, core_seconds, *map(int, counted))


def _step(row: Measured) -> str:
    return f"a step of {duration(row.step_seconds)}" if row.step_seconds else "no step"


def table(rows: Sequence[Measured]) -> str:
    """Formats all measurements as a table."""
    header = ["threads", "step", "examples/s", "tokens/s", "MB/s", "core s/example", "busy cores", "waiting for input"]
    lines = [[*header, f"under {TARGET:.0%}"]]
    for row in rows:
        line = [str(row.threads), _step(row)]
        line += [f"{row.examples / row.seconds:.1f}", f"{row.tokens / row.seconds:.0f}", f"{row.bytes / row.seconds / 1e6:.0f}"]
        line += [f"{row.core_seconds / row.examples:.4f}", f"{row.core_seconds / row.seconds:.2f}", f"{row.waiting:.2%}"]
        lines.append([*line, ("met" if row.waiting < TARGET else "MISSED") if row.step_seconds else ""])
    return aligned(lines)


def needs(rows: Sequence[Measured], host: Host, steps: int) -> str:
    """Returns an estimate, computed from the measurements, of how many cores a host keeps busy at its step time."""
    cores = max(row.core_seconds / row.examples for row in rows)
    examples = sum(row.examples for row in rows) / len(rows) / steps
    return (
        f"A host needs {examples:.1f} examples per step of {duration(host.step_seconds)}. At {cores:.4f} core seconds each\n"
        f"(the maximum above), this keeps {examples * cores / host.step_seconds:.2f} cores busy."
    )
