"""Benchmarks this package against Hugging Face on torch: same weights, inputs and threads, timed alternately.

Examples:
  python -m vitar_jax.bench model
  python -m vitar_jax.bench model --sizes=10m --rounds=5 --output=runs/bench_model.json
  python -m vitar_jax.bench rollout --config=configs/quickstart.py --sizes=quickstart
  python -m vitar_jax.bench rollout --config=configs/quickstart_qwen3.py
  python -m vitar_jax.bench rollout --config=configs/quickstart.py --draft_tokens=6 --checkpoint=runs/quickstart/grpo/model
  python -m vitar_jax.bench train --config=configs/quickstart.py --sizes=quickstart,10m
  python -m vitar_jax.bench masks
  python -m vitar_jax.bench masks --sizes=hiera_large --rounds=3
  python -m vitar_jax.bench serve --checkpoint=runs/quickstart/grpo/model
  python -m vitar_jax.bench processing
  python -m vitar_jax.bench processing --images=VQA_RAD_DIR/images --workers=1,2
  python -m vitar_jax.bench data --config=configs/vqa_rad_7b.py --config.data.source=VQA_RAD_DIR \\
      --config.data.processor=QWEN_DIR
  python -m vitar_jax.bench attention --sizes=7b
  python -m vitar_jax.bench evidence --config=configs/quickstart.py
  python -m vitar_jax.bench evidence --images=VQA_RAD_DIR/images
  python -m vitar_jax.bench parser --count=1000000
  python -m vitar_jax.bench device --minutes=10
  python -m vitar_jax.bench gaze --searcher=data_prep.gaze.annotated:annotated_searches --images=VQA_RAD_DIR/images
  python -m vitar_jax.bench gaze --config=configs/medeyes_quickstart.py
  python -m vitar_jax.bench gaze --config=configs/medeyes_quickstart.py --steps=1000
  python -m vitar_jax.bench memory --config=configs/quickstart.py --config.stages.grpo.batch_size=1 --figure=memory.png

Six commands compare speed, and report the ratio with its range:
  model       vision tower, prefill, gradient and train step; models of 10m and 150m parameters of each family on a CPU, 3b and
              7b on a GPU
  rollout     the quickstart's episodes of two turns with a tool call between them, by models of the recipe's family; quickstart
              and 10m on a CPU, 7b on a GPU; also decode with 512 live positions of 4,096, against a cache of 512; for a recipe
              whose model makes masks, playing with masks beside playing without; with --draft_tokens, a checkpoint's episodes
              with drafts beside those without
  train       SFT steps, and GRPO steps against TRL's trainer, on text; quickstart and 10m; also GRPO's update on episodes of
              45 % of the limit, with filled rows against one episode per row
  masks       SAM 2's image encoder, and its mask decoder with and without gradient, of 8 masks of an image: hiera_tiny_256 (256
              px), hiera_tiny and hiera_large (1,024 px); also how long decoding tokens takes while the states of [SEG] are kept
  serve       requests and episodes of `python -m vitar_jax.serve` per second at 1, 8 and 32 clients, beside the offline player
              and `transformers serve` (or `generate` behind a server, where that cannot run); needs the extra serve
  processing  image processing, in images per second
They first check that the outputs of both sides agree. They need the test extra (torch) and an idle machine. On Linux,
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves both sides page faults.

Seven commands measure only this package:
  device      for a machine with a GPU or TPU: checks attention's kernels and the logits of tiny models, then measures matrix
              products, copies, prefill, decode, SFT and whole steps of GRPO of 3b and 7b, beside the floors of vitar_jax.plan;
              leaves out from the end what does not fit into --minutes; writes device.json and a Markdown table, device.md;
              measures tiny sizes on a CPU
  attention   temporaries of one full-attention layer of the vision tower for an image of 1,024 px, from compiled programs that
              are not run, and the speed of attention in blocks of queries at small sizes; 3b and 7b
  data        makes the batches of one host of a TPU slice for a recipe's first supervised stage, sleeps for the planned time of
              each step, and reports the share of the time that the host waits for input; needs libtpu (".[tpu]" or ".[test]")
  evidence    what interventions cost an image, beside decoding it; with --config, also how many tokens and seconds a probe of
              the recipe's last stage with probes takes with three interventions and without
  parser      reads randomly damaged turns with every parser, and fails if a parser raises
  gaze        opens the traces of 10,000 questions, in seconds and memory, and searches images with the function that --searcher
              names, in searches per second on one core; with --config, also times steps of the recipe's last stage that learns
              from an expert's traces, beside steps with as many own episodes, and says how memory grows over --steps
  memory      the resident memory of a run at each step of the recipe's last stage that plays episodes, on questions about eight
              images: how much it rises after the first hundred steps; Linux only
"""

import dataclasses
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags, logging

from vitar_jax.bench.command_flags import define_flags
from vitar_jax.bench.pairs import Row, table, write_json
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.runtime import cli
from vitar_jax.runtime.help import subject
from vitar_jax.runtime.registry import Registry

C = TypeVar("C")


def main(command: str) -> None:
    logging.set_verbosity(logging.WARNING)
    _COMMANDS[command](_use_threads(flags.FLAGS.threads))


def _use_threads(count: int) -> int:
    """Pins the process to `count` cores, since XLA starts one thread per core. 0 keeps all cores.

    Returns:
      The number of cores.

    Raises:
      ConfigError: If there are not that many cores, or the system cannot pin a process.
    """
    if sys.platform != "linux":
        if count:
            raise ConfigError(f"--threads={count}: only Linux can pin a process to some of the cores; expected 0")
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))
    if not 0 <= count <= len(cores):
        raise ConfigError(f"--threads: got {count}, expected 0 (all) to {len(cores)}, the number of cores")
    os.sched_setaffinity(0, cores[: count or len(cores)])
    return count or len(cores)


def _chosen(cases: Mapping[str, C], by_default: Sequence[str]) -> list[C]:
    names = flags.FLAGS.sizes or by_default
    for name in names:
        if name not in cases:
            raise ConfigError(f"--sizes: got {name!r}, expected one of {', '.join(cases)}")
    return [cases[name] for name in names]


def _recipe() -> Recipe:
    """Returns the recipe that --config names.

    Raises:
      ConfigError: If the flag is missing, or the recipe is invalid.
    """
    if flags.FLAGS.config is None:
        raise ConfigError("--config=FILE is required; --help shows examples")
    return Recipe.from_config(flags.FLAGS.config)


def _describe(threads: int) -> dict[str, Any]:
    from vitar_jax.bench.model import describe

    facts = describe(threads)
    print(f"{facts['vitar_jax']}; {facts['peer']}; {threads} threads each; GLIBC_TUNABLES={facts['glibc_tunables']!r}")
    return facts


def _say(line: str) -> None:
    print(line, flush=True)


def _beside_torch(threads: int) -> None:
    """Prepares JAX and torch to share the machine. Call it before JAX looks for devices."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves GPU memory for torch
    import torch

    torch.set_num_threads(threads)


def _conclude(rows: Sequence[Row], facts: dict[str, Any], lines: Sequence[str] = (), matrix_rate: float = 0.0) -> None:
    """Prints the table and `lines`, and writes rows and `facts` to --output if given."""
    print("", table(rows, matrix_rate), "", *lines, sep="\n")
    if flags.FLAGS.output:
        write_json(flags.FLAGS.output, rows, facts)


def _model(threads: int) -> None:
    # Imports are local because they are slow: --help and errors in flags need none of them.
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
        f"MFU is relative to {rate / 1e9:.0f} GFLOP/s, the matrix product of the faster side above. FLOPs are counted from the",
        "sizes: all matrix products of both towers, with causal attention counted in full and rematerialization not at all.",
    )
    _conclude(rows, facts | {"matrix_flops_per_second": rate}, explained, rate)


def _rollout(threads: int) -> None:
    _beside_torch(threads)
    import jax

    from vitar_jax.bench import decode_lengths, rollout
    from vitar_jax.bench.scripted import ON_CPU, ON_GPU, rollout_cases

    on_gpu, recipe = jax.default_backend() == "gpu", _recipe()
    if drafted := flags.FLAGS.draft_tokens:
        from vitar_jax.bench import drafted_rollout

        if not flags.FLAGS.checkpoint:
            raise ConfigError("--draft_tokens: needs --checkpoint, because random weights write nothing foreseeable")
        sizes = {"drafted": drafted, "steps": flags.FLAGS.steps or 8, "rounds": flags.FLAGS.rounds}
        drafts = drafted_rollout.measure(recipe, flags.FLAGS.checkpoint, **sizes, say=_say)
        print(drafted_rollout.text(drafts, drafted))
        if flags.FLAGS.output:
            write_json(flags.FLAGS.output, [], {"threads": threads, "drafts": drafts})
        return
    if recipe.model.find_family().masks is not None:
        from vitar_jax.bench import masked_rollout

        found = masked_rollout.measure(recipe, rounds=flags.FLAGS.rounds, say=_say)
        print(masked_rollout.text(found))
        if flags.FLAGS.output:
            write_json(flags.FLAGS.output, [], {"threads": threads, "masks": found})
        return
    cases = _chosen(rollout_cases(recipe), ON_GPU if on_gpu else ON_CPU)
    for case in cases:
        if case.name in ON_GPU and not on_gpu:
            raise ConfigError(f"--sizes: {case.name} needs a GPU, and JAX found only a {jax.default_backend()}")
    facts = _describe(threads)
    rows, counts = rollout.measure(cases, rounds=flags.FLAGS.rounds, try_compile=flags.FLAGS.try_compile, say=_say)
    rows.append(decode_lengths.measure(flags.FLAGS.rounds, _say))
    _conclude(rows, facts | {"counts": counts}, [rollout.counts_text(name, counted) for name, counted in counts.items()])


def _train(threads: int) -> None:
    _beside_torch(threads)
    import transformers

    from vitar_jax.bench import train
    from vitar_jax.bench.text_task import train_cases

    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # transformers warns about TRL's settings
    known = train_cases(_recipe())
    cases = _chosen(known, list(known))
    facts = _describe(threads)
    rows, phases = train.measure(cases, rounds=flags.FLAGS.rounds, try_compile=flags.FLAGS.try_compile, say=_say)
    _conclude(rows, facts | {"phases": phases}, [train.phases_text(name, found) for name, found in phases.items()])


def _masks(threads: int) -> None:
    _beside_torch(threads)
    from vitar_jax.bench import masks

    cases = _chosen(masks.MASK_CASES, masks.BY_DEFAULT)
    facts = _describe(threads)
    rows = masks.measure(cases, rounds=flags.FLAGS.rounds, say=_say)
    ratios = masks.states_ratio(flags.FLAGS.rounds)
    _conclude(rows, facts | {"states_ratios": ratios}, [masks.states_text(ratios)])


def _serve(threads: int) -> None:
    clients = _numbers("clients")
    if not flags.FLAGS.checkpoint:
        raise ConfigError("serve: --checkpoint=DIR is required; --help shows examples")
    from vitar_jax.bench import serve

    facts = _describe(threads)
    rows, found = serve.measure(
        Path(flags.FLAGS.checkpoint),
        clients=clients,
        count=flags.FLAGS.count or 64,
        tokens=flags.FLAGS.tokens,
        threads=threads,
        rounds=flags.FLAGS.rounds,
        say=_say,
    )
    _conclude(rows, facts | {"serve": found}, serve.text(found))


def _processing(threads: int) -> None:
    from vitar_jax.bench import processing

    rows = processing.measure(
        Path(flags.FLAGS.images) if flags.FLAGS.images else None,
        count=flags.FLAGS.count or 32,
        workers=_numbers("workers"),
        rounds=flags.FLAGS.rounds,
        say=_say,
    )
    _conclude(rows, {"threads": threads, "images": flags.FLAGS.images})


def _attention(threads: int) -> None:
    del threads
    from vitar_jax.bench import attention
    from vitar_jax.bench.cases import CASES, ON_GPU

    cases = _chosen({name: CASES[name] for name in ON_GPU}, ON_GPU)
    memories = attention.memory({case.name: case.config for case in cases}, _say)
    rows = attention.speed(flags.FLAGS.rounds)
    print("", attention.table(memories, rows), sep="\n")
    if flags.FLAGS.output:
        write_json(flags.FLAGS.output, rows, {"memory": [dataclasses.asdict(one) for one in memories]})


def _numbers(flag: str) -> list[int]:
    """Returns the numbers of a flag. They are positive.

    Raises:
      ConfigError: If the flag has something else.
    """
    given: list[str] = getattr(flags.FLAGS, flag)
    if not all(word.isdecimal() and int(word) for word in given):
        raise ConfigError(f"--{flag}: got {','.join(given)}, expected numbers separated by commas")
    return [int(word) for word in given]


def _data(threads: int) -> None:
    recipe = _recipe()
    from vitar_jax.bench import data
    from vitar_jax.parallel.topology import find_topology

    steps, workers = flags.FLAGS.steps or 8, _numbers("workers")
    topology = find_topology(flags.FLAGS.topology)
    stage = data.supervised_stage(recipe)
    host = data.host_of(recipe, stage, topology, flags.FLAGS.mfu)
    with tempfile.TemporaryDirectory() as scratch:
        processor = build.processor(recipe, Path(scratch))
    where = f"one of {host.share.count} hosts of {topology.name}, with steps at {flags.FLAGS.mfu:.0%} of peak FLOP/s"
    print(f"{where}; measured on {threads} cores; {host.shape}", flush=True)
    rows = data.measure(recipe, stage, processor, host, threads=workers, steps=steps, say=_say)
    print(f"\n{data.table(rows)}\n\n{data.needs(rows, host, steps)}")
    if flags.FLAGS.output:
        facts = {"topology": topology.name, "mfu": flags.FLAGS.mfu, "cores": threads, "host": dataclasses.asdict(host)}
        listed = [dataclasses.asdict(row) | {"waiting": row.waiting} for row in rows]
        Path(flags.FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
        Path(flags.FLAGS.output).write_text(json.dumps(facts | {"rows": listed}, indent=2) + "\n")


def _gaze(threads: int) -> None:
    del threads
    from vitar_jax.bench import gaze

    searchers: Registry[gaze.Searcher] = Registry("searcher")
    searched: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        opened = gaze.opening(Path(scratch), flags.FLAGS.count or 10_000)
        if flags.FLAGS.searcher:
            images = Path(flags.FLAGS.images) if flags.FLAGS.images else None
            searched = gaze.searching(searchers.find(flags.FLAGS.searcher), Path(scratch), images, flags.FLAGS.count or 300)
    print(gaze.table(opened, searched), flush=True)
    stepped = _expert_steps() if flags.FLAGS.config is not None else {}
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
        Path(flags.FLAGS.output).write_text(json.dumps(opened | searched | stepped, indent=2) + "\n")


def _expert_steps() -> dict[str, float]:
    from vitar_jax.bench import expert_steps

    recipe = _recipe()
    name = expert_steps.expert_stage(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        speed = expert_steps.playing(recipe, name, folder / "playing", recipe.stages[name].batch_size)
        found = {"expert_episodes_per_second": speed} | expert_steps.stepping(recipe, name, folder, flags.FLAGS.steps or 8)
    print(expert_steps.table(found, name))
    return found


def _memory(threads: int) -> None:
    del threads
    from vitar_jax.bench import memory

    recipe = _recipe()
    name = memory.played_stage(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        resident = memory.measure(recipe, name, Path(scratch), flags.FLAGS.steps or 1000)
    found = memory.summarize(resident)
    print(memory.report(found, name))
    if flags.FLAGS.figure:
        memory.figure(resident, Path(flags.FLAGS.figure))
    if flags.FLAGS.output:
        Path(flags.FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
        Path(flags.FLAGS.output).write_text(json.dumps(found | {"stage": name, "resident": resident}, indent=2) + "\n")


def _evidence(threads: int) -> None:
    from vitar_jax.bench import evidence

    folder = Path(flags.FLAGS.images) if flags.FLAGS.images else None
    recipe = None if flags.FLAGS.config is None else _recipe()
    name = evidence.probed_stage(recipe) if recipe else ""
    rows = evidence.changing(folder, count=flags.FLAGS.count or 8, rounds=flags.FLAGS.rounds)
    print(f"\n{evidence.table(rows)}\n", flush=True)
    facts: dict[str, Any] = {"threads": threads, "images": flags.FLAGS.images}
    if recipe:
        with tempfile.TemporaryDirectory() as scratch:
            facts["probe"] = evidence.probing(recipe, name, Path(scratch), flags.FLAGS.rounds)
        print(evidence.probe_text(facts["probe"]))
    if flags.FLAGS.output:
        write_json(flags.FLAGS.output, rows, facts)


def _parser(threads: int) -> None:
    del threads
    from vitar_jax.bench import parser

    raised = parser.run(flags.FLAGS.count or 1_000_000, flags.FLAGS.seed, say=_say)
    sys.exit(1 if raised else 0)


def _device(threads: int) -> None:
    del threads
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # a GPU's, of which JAX would take three quarters
    from vitar_jax.bench.device.run import benchmark

    if not benchmark(flags.FLAGS.minutes, Path(flags.FLAGS.output or "device.json"), _say):
        sys.exit(1)


_COMMANDS: dict[str, Callable[[int], None]] = {
    "model": _model,
    "rollout": _rollout,
    "train": _train,
    "masks": _masks,
    "serve": _serve,
    "processing": _processing,
    "device": _device,
    "attention": _attention,
    "data": _data,
    "evidence": _evidence,
    "parser": _parser,
    "gaze": _gaze,
    "memory": _memory,
}
COMMANDS = tuple(_COMMANDS)


if __name__ == "__main__":
    with subject("Flags"):
        define_flags()
    cli.run(main, commands=COMMANDS)
