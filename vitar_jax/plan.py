"""Plans a run before a machine is booked: compiles its real programs for a TPU that is not here, and says what they need.

Examples:
  python -m vitar_jax.plan --config=configs/quickstart.py --topology=v5e:2x2
  python -m vitar_jax.plan --config=configs/quickstart.py --topology=v6e:4x4 --program=decode --json
  python -m vitar_jax.plan --config=configs/quickstart.py --topology=cpu --program=reshard

Programs: train (a step of --stage), reshard (training's layout of the weights to rollout's), prefill (reading prompts or
observations into the cache), decode (a chunk of tokens). Plans for TPUs need the package libtpu.
"""

import dataclasses
import json
import time
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from vitar_jax import cli
from vitar_jax.errors import ConfigError
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.flops import BACKWARD, head_flops, text_flops, vision_flops
from vitar_jax.parallel.hlo import Memory, collectives
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.parallel.topology import Topology, find_topology
from vitar_jax.programs import NAMES, Programs
from vitar_jax.recipe import Recipe, StageConfig


def make_plan(programs: Programs, name: str, stage: StageConfig, topology: Topology) -> dict[str, Any]:
    """Compiles a program and says what it needs, in bytes, operations and seconds; keys as in the printed plan.

    A program that does not fit a chip has `fits` False, what it `needs` in the compiler's words, and `advice`.
    """
    began = time.perf_counter()
    lowered = programs.lower(name, stage)
    plan: dict[str, Any] = {"program": name, "topology": topology.name, "chips": len(topology.devices)}
    plan["mesh"] = dict((programs.rollout_mesh if name in ("prefill", "decode") else programs.mesh).shape)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return plan | {"fits": False, **_too_large(str(error), name), "compile_seconds": time.perf_counter() - began}
    memory, text = Memory.of(compiled), compiled.as_text()
    found = collectives(text)
    flops = program_flops(programs, name, stage)
    plan |= {
        "fits": topology.chip is None or memory.total <= topology.chip.memory,
        "memory": {
            "arguments": memory.arguments,
            "outputs": memory.outputs,
            "aliased": memory.aliased,
            "temporaries": memory.temporaries,
            "total": memory.total,
        },
        "collectives": {c.kind: {"count": c.count, "bytes": c.bytes} for c in found},
        "flops": flops,
        "compile_seconds": time.perf_counter() - began,
    }
    if topology.chip is not None:
        chip, count = topology.chip, len(topology.devices)
        floors = {
            "compute": flops / count / chip.flops,
            # Everything that goes in is read and everything that comes out is written, once.
            "memory": (memory.arguments + memory.outputs) * _passes(programs, name) / chip.bandwidth,
            "interconnect": sum(c.bytes for c in found) / chip.links,
        }
        plan |= {"chip_memory": chip.memory, "floors_seconds": floors, "least_seconds": max(floors.values())}
    return plan


def _passes(programs: Programs, name: str) -> int:
    """How often a program goes through its arguments: decoding reads weights and cache for every token of a chunk."""
    return programs.recipe.rollout.chunk if name == "decode" else 1


def program_flops(programs: Programs, name: str, stage: StageConfig) -> int:
    """Operations of one run of a program on all chips, from its sizes; see `models/flops.py`."""
    text, vision = programs.config.text, programs.config.vision
    rollout, capacity = programs.recipe.rollout, programs.recipe.limits.tokens
    if name == "train":
        shape = programs.batch_shape(stage)
        size = shape.size_class
        forward = text_flops(text, rows=shape.bins * shape.rows, tokens=shape.tokens)
        forward += head_flops(text, tokens=shape.bins * shape.policy_tokens)
        images = shape.bins * shape.images
        forward += vision_flops(vision, images=images, windows=size.windows, window_patches=size.window_patches)
        return (1 + BACKWARD) * forward
    if name == "reshard":
        return 0
    new = max(rollout.extend_lengths) if name == "prefill" else rollout.chunk
    # Attention looks over the whole cache, whatever it holds.
    whole = text_flops(text, rows=1, tokens=capacity) * new // capacity
    return rollout.slots * whole + head_flops(text, tokens=rollout.slots * (1 if name == "prefill" else new))


def _too_large(message: str, name: str) -> dict[str, Any]:
    """What the compiler says of a program that does not fit, and what to try."""
    advice = {
        "train": "fewer rows a chip (batch_size, or more chips), --config.model.remat=layer, a smaller logprob_chunk",
        "reshard": "a larger rollout.tensor, or rollout.dtype bfloat16",
        "prefill": "shorter rollout.extend_lengths, fewer rollout.slots, a larger rollout.tensor",
        "decode": "fewer rollout.slots, smaller limits.tokens, a larger rollout.tensor, rollout.dtype bfloat16",
    }[name]
    return {"needs": message.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: "), "advice": advice}


def describe(plan: dict[str, Any]) -> str:
    """A plan for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lines = [f"{plan['program']} on {plan['topology']}, {plan['chips']} chips, mesh {mesh}"]
    if not plan["fits"] and "needs" in plan:
        lines.append(f"  does not fit: {plan['needs']}")
        lines.append(f"  try: {plan['advice']}")
    else:
        memory = plan["memory"]
        parts = ", ".join(f"{part} {_gib(memory[part])}" for part in ("arguments", "temporaries", "outputs", "aliased"))
        of = f" of {_gib(plan['chip_memory'])}" if "chip_memory" in plan else ""
        lines.append(f"  {'fits' if plan['fits'] else 'does not fit'}: {_gib(memory['total'])}{of} GiB a chip ({parts})")
        for kind, c in plan["collectives"].items():
            lines.append(f"  {kind}: {c['count']} a chip, {c['bytes'] / 1e6:,.1f} MB")
        lines.append(f"  {plan['flops'] / 1e12:,.2f} TFLOP in all")
        if "floors_seconds" in plan:
            floors = ", ".join(f"{name} {_seconds(value)}" for name, value in plan["floors_seconds"].items())
            lines.append(f"  at least {_seconds(plan['least_seconds'])} ({floors})")
    lines.append(f"  lowered and compiled in {plan['compile_seconds']:.0f} s")
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.2f} ms"


def main() -> None:
    if flags.FLAGS.config is None:
        raise ConfigError("--config=FILE must be given; --help shows examples")
    recipe = Recipe.from_config(flags.FLAGS.config)
    topology = find_topology(flags.FLAGS.topology)
    stage = flags.FLAGS.stage or recipe.schedule[-1]
    if stage not in recipe.stages:
        raise ConfigError(f"--stage={stage}: there is no such stage; there are {', '.join(recipe.stages)}")
    programs = Programs(recipe, model_config(recipe), make_mesh(**dataclasses.asdict(recipe.mesh), devices=topology.devices))
    plans = [make_plan(programs, name, recipe.stages[stage], topology) for name in flags.FLAGS.program or NAMES]
    print(json.dumps(plans, indent=2) if flags.FLAGS.json else "\n".join(map(describe, plans)))
    if not all(plan["fits"] for plan in plans):
        raise SystemExit(1)


def model_config(recipe: Recipe) -> ModelConfig:
    """The recipe's model without a tokenizer: no program depends on the numbers of special tokens."""
    text, vision = recipe.architecture()
    return ModelConfig(text, vision, 0, 0, 0, 0, **recipe.model.computation)


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
    flags.DEFINE_string("topology", "v5e:2x2", "What to compile for: v5e:8x8 and the like, or cpu.")
    flags.DEFINE_multi_enum("program", [], NAMES, "Which programs; all by default.")
    flags.DEFINE_string("stage", "", "Stage whose training step is planned; the last one scheduled by default.")
    flags.DEFINE_boolean("json", False, "Prints JSON.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
