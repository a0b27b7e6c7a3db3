"""Times ours beside Hugging Face on torch: same weights, inputs and threads, in turns, as ratios with their range.

Examples:
  python -m vitar_jax.bench model
  python -m vitar_jax.bench model --sizes=10m --rounds=5 --output=runs/bench_model.json
  python -m vitar_jax.bench rollout --config=configs/quickstart.py --sizes=quickstart
  python -m vitar_jax.bench train --config=configs/quickstart.py --sizes=quickstart,10m
  python -m vitar_jax.bench processing
  python -m vitar_jax.bench processing --images=VQA_RAD_DIR/images --workers=1,2
  python -m vitar_jax.bench data --config=configs/vqa_rad_7b.py --config.data.source=VQA_RAD_DIR \\
      --config.data.processor=QWEN_DIR
  python -m vitar_jax.bench parser --count=1000000

`model` times a vision tower, a prefill and a train step; at 10m and 150m parameters on a CPU, at 3b and 7b on a GPU.
`rollout` times episodes of two turns with a tool between them, those of the quickstart's recipe: by its own model and at 10m on
a CPU, at 7b on a GPU.
`train` times steps of SFT and of GRPO on text alone, GRPO beside TRL's trainer, at the same two sizes.
`processing` times images a second. All check first that the two sides' outputs agree. They need the test extra (torch) and
an idle machine. On Linux, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 spares both sides page faults.

`data` has no other side: it makes the batches that one host of a slice of TPUs needs for a recipe's first supervised stage, and
says for what share of a step, slept for, the host would wait. It needs libtpu (".[tpu]" or ".[test]").

`parser` has none either: it reads damaged turns, and fails if a parser raises.
"""

import dataclasses
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags, logging

from vitar_jax.bench.pairs import Row, table, write_json
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.runtime import cli, config_flag

C = TypeVar("C")
COMMANDS = ("model", "rollout", "train", "processing", "data", "parser")


def main(command: str) -> None:
    logging.set_verbosity(logging.WARNING)
    threads = _use_threads(flags.FLAGS.threads)
    if command == "model":
        _model(threads)
    elif command == "rollout":
        _rollout(threads)
    elif command == "train":
        _train(threads)
    elif command == "processing":
        _processing(threads)
    elif command == "data":
        _data(threads)
    else:
        _parser()


def _use_threads(count: int) -> int:
    """Confines the process to `count` cores, 0 for all it has: XLA starts as many threads as it has cores."""
    if sys.platform != "linux":
        if count:
            raise ConfigError(f"--threads={count}: only Linux can confine a process to some of its cores")
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))
    if not 0 <= count <= len(cores):
        raise ConfigError(f"--threads={count}: there are {len(cores)} cores")
    os.sched_setaffinity(0, cores[: count or len(cores)])
    return count or len(cores)


def _chosen(cases: Mapping[str, C], by_default: Sequence[str]) -> list[C]:
    names = flags.FLAGS.sizes or by_default
    for name in names:
        if name not in cases:
            raise ConfigError(f"--sizes: {name!r} is not one of {', '.join(cases)}")
    return [cases[name] for name in names]


def _recipe() -> Recipe:
    """Reads the recipe that --config names."""
    if flags.FLAGS.config is None:
        raise ConfigError("--config=FILE must be given; --help shows examples")
    return Recipe.from_config(flags.FLAGS.config)


def _describe(threads: int) -> dict[str, Any]:
    from vitar_jax.bench.model import describe

    facts = describe(threads)
    print(f"{facts['vitar_jax']}; {facts['peer']}; {threads} threads each; GLIBC_TUNABLES={facts['glibc_tunables']!r}")
    return facts


def _say(line: str) -> None:
    print(line, flush=True)


def _beside_torch(threads: int) -> None:
    """To be called before JAX is asked for devices."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs some of a GPU's memory too
    import torch

    torch.set_num_threads(threads)


def _conclude(rows: Sequence[Row], facts: dict[str, Any], lines: Sequence[str] = (), matrix_rate: float = 0.0) -> None:
    """Prints the table and `lines`, and writes rows and `facts` where the flags say."""
    print("", table(rows, matrix_rate), "", *lines, sep="\n")
    if flags.FLAGS.output:
        write_json(flags.FLAGS.output, rows, facts)


def _model(threads: int) -> None:
    # Heavy, and needed only here: --help and a wrong flag answer at once.
    _beside_torch(threads)
    import jax

    from vitar_jax.bench import model
    from vitar_jax.bench.cases import CASES, ON_CPU, ON_GPU, WORK

    on_gpu = jax.default_backend() == "gpu"
    cases = _chosen(CASES, ON_GPU if on_gpu else ON_CPU)
    facts = _describe(threads) | {"work": WORK}
    for work, meaning in WORK.items():
        print(f"  {work}: {meaning}")
    rows, rate = model.measure(
        cases,
        rounds=flags.FLAGS.rounds,
        try_compile=flags.FLAGS.try_compile,
        matrix_size=8192 if on_gpu else 2048,
        say=_say,
    )
    explained = (
        f"MFU: a share of {rate / 1e9:.0f} GFLOP/s, the faster side's matrix product above. Operations are counted from",
        "the sizes: matrix products of both towers, causal attention in full, nothing for what is computed again.",
    )
    _conclude(rows, facts | {"matrix_flops_per_second": rate}, explained, rate)


def _rollout(threads: int) -> None:
    _beside_torch(threads)
    import jax

    from vitar_jax.bench import rollout
    from vitar_jax.bench.scripted import ON_CPU, ON_GPU, rollout_cases

    on_gpu = jax.default_backend() == "gpu"
    cases = _chosen(rollout_cases(_recipe()), ON_GPU if on_gpu else ON_CPU)
    for case in cases:
        if case.name in ON_GPU and not on_gpu:
            raise ConfigError(f"--sizes: {case.name} wants a GPU; the device here is a {jax.default_backend()}")
    facts = _describe(threads)
    rows, counts = rollout.measure(cases, rounds=flags.FLAGS.rounds, try_compile=flags.FLAGS.try_compile, say=_say)
    _conclude(rows, facts | {"counts": counts}, [rollout.counts_text(name, counted) for name, counted in counts.items()])


def _train(threads: int) -> None:
    _beside_torch(threads)
    import transformers

    from vitar_jax.bench import train
    from vitar_jax.bench.text_task import train_cases

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # what transformers says of TRL's settings
    known = train_cases(_recipe())
    cases = _chosen(known, list(known))
    facts = _describe(threads)
    rows, phases = train.measure(cases, rounds=flags.FLAGS.rounds, try_compile=flags.FLAGS.try_compile, say=_say)
    _conclude(rows, facts | {"phases": phases}, [train.phases_text(name, found) for name, found in phases.items()])


def _processing(threads: int) -> None:
    from vitar_jax.bench import processing

    rows = processing.measure(
        Path(flags.FLAGS.images) if flags.FLAGS.images else None,
        count=flags.FLAGS.count or 32,
        workers=_workers(),
        rounds=flags.FLAGS.rounds,
        say=_say,
    )
    _conclude(rows, {"threads": threads, "images": flags.FLAGS.images})


def _workers() -> list[int]:
    try:
        return [int(number) for number in flags.FLAGS.workers]
    except ValueError:
        raise ConfigError(f"--workers={','.join(flags.FLAGS.workers)}: numbers, separated by commas") from None


def _data(threads: int) -> None:
    recipe = _recipe()
    from vitar_jax.bench import data
    from vitar_jax.parallel.topology import find_topology

    steps, workers = flags.FLAGS.rounds, _workers()
    topology = find_topology(flags.FLAGS.topology)
    stage = data.supervised_stage(recipe)
    host = data.host_of(recipe, stage, topology, flags.FLAGS.mfu)
    with tempfile.TemporaryDirectory() as scratch:
        processor = build.processor(recipe, Path(scratch))
    where = f"one of {host.share.count} hosts of {topology.name}, its step at {flags.FLAGS.mfu:.0%} of the peak"
    print(f"{where}; {threads} cores here; {host.shape}", flush=True)
    rows = data.measure(recipe, stage, processor, host, threads=workers, steps=steps, say=_say)
    print(f"\n{data.table(rows)}\n\n{data.needs(rows, host, steps)}")
    if flags.FLAGS.output:
        facts = {"topology": topology.name, "mfu": flags.FLAGS.mfu, "cores": threads, "host": dataclasses.asdict(host)}
        listed = [dataclasses.asdict(row) | {"waiting": row.waiting} for row in rows]
        Path(flags.FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
        Path(flags.FLAGS.output).write_text(json.dumps(facts | {"rows": listed}, indent=2) + "\n")


def _parser() -> None:
    from vitar_jax.bench import parser

    raised = parser.run(flags.FLAGS.count or 1_000_000, flags.FLAGS.seed, say=_say)
    sys.exit(1 if raised else 0)


def define_flags() -> None:
    flags.DEFINE_list(
        "sizes",
        [],
        "Models to time: 10m, 150m, 3b, 7b in model; quickstart, 10m, 7b in rollout; quickstart, 10m in train "
        "(default: those that suit the device).",
    )
    flags.DEFINE_integer("rounds", 8, "Number of measurements of each side, or of steps in data (default: 8).", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "Number of cores that both sides use. 0 means all.")
    flags.DEFINE_boolean("try_compile", True, "Also try torch.compile, which takes minutes.")
    flags.DEFINE_string("images", "", "Folder of images to process (default: generated grey JPEGs).")
    flags.DEFINE_integer(
        "count", None, "Number of images to process (default: 32) or of strings to parse (default: 1,000,000).", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Seed of the generated strings.")
    flags.DEFINE_list("workers", ["1", "2"], "Numbers of workers to measure, or of threads in data.")
    config_flag.define(Recipe, "Recipe file: the quickstart's in rollout and train, any in data.")
    flags.DEFINE_string("topology", "v5e:8x8", "TPU slice whose input is measured.")
    flags.DEFINE_float(
        "mfu", 0.5, "Share of the slice's peak FLOP/s that a step is assumed to reach.", lower_bound=0.01, upper_bound=1.0
    )
    flags.DEFINE_string("output", "", "JSON file to write all times to.")


if __name__ == "__main__":
    define_flags()
    cli.run(main, commands=COMMANDS)
