"""Input of training beside a device that is not here: how fast one host's batches are made, and how long a step waits for them.

The pipeline is that of the recipe's first supervised stage, from files to packed batches of one host of a slice. The device
is a sleep: a step's operations (`program_flops`) at a stated share of the slice's peak. Copying a batch to it is left out.
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
from vitar_jax.parallel.mesh import bins, local_bins, make_mesh
from vitar_jax.parallel.topology import Topology
from vitar_jax.processing.packing import BatchShape
from vitar_jax.processing.processor import Processor
from vitar_jax.runtime.cli import duration

TARGET = 0.02  # most of a step that may be waiting for input
_SLACK = 2.0  # where this machine cannot keep up: a step so many times as long as it takes for a batch


@dataclasses.dataclass(frozen=True)
class Host:
    """What one host of a slice does at a step.

    Attributes:
      share: which part of the data it reads.
      shape: of its part of a batch.
      step_seconds: of the slice, at `mfu` of its peak.
    """

    share: Share
    shape: BatchShape
    step_seconds: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Batches taken one after another, with a sleep of `step_seconds` after each.

    Attributes:
      threads: of the pipeline. wait: seconds that each batch was waited for.
      seconds, core_seconds: in all, by the clock and of processor time.
      examples, tokens, bytes: in all batches; tokens without padding.
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
        """Share of the time in which a step waits for its batch."""
        return sum(self.wait) / self.seconds


def supervised_stage(recipe: Recipe) -> StageConfig:
    """Returns the recipe's first supervised stage; only these read batches ahead.

    Raises:
      ConfigError: If the recipe has none.
    """
    stages = [stage for stage in map(recipe.stages.__getitem__, recipe.schedule) if isinstance(stage.objective, SFT)]
    if not stages:
        raise ConfigError("--config: the recipe has no supervised stage, and only these read batches ahead")
    return stages[0]


def host_of(recipe: Recipe, stage: StageConfig, topology: Topology, mfu: float) -> Host:
    """The first host of a slice.

    Raises:
      ConfigError: the peak of the slice is unknown, or the recipe's mesh does not go with it.
    """
    if topology.chip is None:
        raise ConfigError(f"--topology={topology.name}: its peak is not known")
    mesh = make_mesh(**dataclasses.asdict(recipe.mesh), devices=topology.devices)
    flops = program_flops(Programs(recipe, build.model_config(recipe), mesh), "train", stage)
    return Host(
        share=Share(0, len({device.process_index for device in topology.devices})),
        shape=build.batch_shape(recipe, stage, bins=local_bins(mesh), shards=bins(mesh)),
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
    """Takes `steps` batches as fast as they come and again at the host's step, for each number of threads.

    Where making them takes longer than the step, they are also taken at a step that this machine can keep up with.
    """
    rows = []

    feed = stage_feed(recipe, stage, processor, host.shape, recipe.seed, host.share)

    def batches(threads: int) -> Batches:
        return stage.objective.batches(dataclasses.replace(feed, threads=threads))

    def take(number: int, step_seconds: float) -> float:
        """Returns the seconds that a batch took."""
        rows.append(_take(batches(number), number, step_seconds, steps))
        say(f"{number} threads, {_step(rows[-1])}: waiting for input {rows[-1].waiting:.2%} of the time")
        return rows[-1].seconds / steps

    for number in threads:
        seconds = take(number, 0.0)
        take(number, host.step_seconds)
        if seconds > host.step_seconds:
            take(number, _SLACK * seconds)
    return rows


def _take(batches: Batches, threads: int, step_seconds: float, steps: int) -> Measured:
    """Two batches are taken before the clock starts: the first ones are waited for while the step is compiled."""
    state: Any = None  # that of training, on which no supervised batch depends
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
    header = ["threads", "step", "examples/s", "tokens/s", "MB/s", "core s/example", "cores kept busy", "waiting for input"]
    lines = [[*header, f"under {TARGET:.0%}"]]
    for row in rows:
        line = [str(row.threads), _step(row)]
        line += [f"{row.examples / row.seconds:.1f}", f"{row.tokens / row.seconds:.0f}", f"{row.bytes / row.seconds / 1e6:.0f}"]
        line += [f"{row.core_seconds / row.examples:.4f}", f"{row.core_seconds / row.seconds:.2f}", f"{row.waiting:.2%}"]
        lines.append([*line, ("met" if row.waiting < TARGET else "MISSED") if row.step_seconds else ""])
    return aligned(lines)


def needs(rows: Sequence[Measured], host: Host, steps: int) -> str:
    """What follows for a host, computed and not measured: how many cores would be busy all the time at its step."""
    cores = max(row.core_seconds / row.examples for row in rows)
    examples = sum(row.examples for row in rows) / len(rows) / steps
    return (
        f"A host takes {examples:.1f} examples a step of {duration(host.step_seconds)}. At {cores:.4f} s of a core each,\n"
        f"the most above, that would keep {examples * cores / host.step_seconds:.2f} cores busy."
    )
