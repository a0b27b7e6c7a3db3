"""Plans a run before any hardware is booked: compiles its programs for a TPU topology, and prints memory, FLOPs and times.

Examples:
  python -m vitar_jax.plan --config=configs/quickstart.py --topology=v5e:2x2
  python -m vitar_jax.plan --config=configs/quickstart.py --topology=v6e:4x4 --program=decode --json
  python -m vitar_jax.plan --config=configs/quickstart.py --topology=gpu:8 --program=train
  python -m vitar_jax.plan --config=configs/vitar_7b.py --topology=v5e:4x8 --program=train --mean_tokens=900

Programs: train (one step of --stage), reshard (weights from the training layout to the rollout layout), prefill (prompts or
observations into the cache), decode (one chunk of tokens). A recipe that plays a protocol with masks has two more: maps
(encodes an image for masks on each data shard) and masks (makes the masks of turns). Planning for TPUs needs the package
libtpu. Compiling for GPUs needs a GPU, so a plan for GPUs has only the numbers that follow from array sizes and the layout.
"""

import contextlib
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.program_bytes import argument_bytes, argument_passes
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.programs import MASK_NAMES, NAMES, Call, Programs
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.models.attention import find_back_end
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.parallel.topology import Topology, find_topology
from vitar_jax.plan.hlo import Memory, collectives, largest_values
from vitar_jax.runtime import cli, config_flag
from vitar_jax.runtime.help import subject


def make_plan(
    programs: Programs, name: str, stage_name: str, topology: Topology, mean_tokens: int = 0
) -> dict[str, Any]:
    """Compiles a program and returns its plan: the bytes, FLOPs and seconds that it needs.

    Plans of programs that make or take the weights of rollout have their size in `rollout_weights` (bytes per device). With
    `mean_tokens`, the plans of train and decode also have the seconds `at_mean`; see `_at_mean`.

    If a program does not fit, `fits` is False, `needs` is the compiler's message, and the plan also has the `largest` arrays
    and `advice`. Compiles nothing for GPUs; `fits` is then False if the arguments alone are too large, else None.

    Raises:
      ConfigError: If the config selects a kernel and the compiled program contains none.
    """
    began = time.perf_counter()
    stage = programs.recipe.stages[stage_name]
    call = programs.call(name, stage)
    plan: dict[str, Any] = {"program": name, "stage": stage_name if name in ("train", "reshard") else ""}
    plan |= {"topology": topology.name, "chips": len(topology.devices)}
    plan["mesh"] = dict((programs.rollout_mesh if name not in ("train", "reshard") else programs.mesh).shape)
    plan["flops"] = program_flops(programs, name, stage)
    if name in _ROLLOUT:
        plan["rollout_weights"] = argument_bytes(Call(None, (programs.rollout_weights,)))
    if topology.platform == "gpu":
        arguments = argument_bytes(call)
        assert topology.chip is not None
        plan["fits"] = None if arguments <= topology.chip.memory else False
        plan["memory"] = {"arguments": arguments}
        passed, sent = arguments, None
    else:
        lowered = call.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return plan | _too_large(error, lowered, name) | {"compile_seconds": time.perf_counter() - began}
        memory, text = Memory.of(compiled), compiled.as_text()
        check_kernels(text, programs.config.attention, name)
        found = collectives(text)
        plan["fits"] = topology.chip is None or memory.total <= topology.chip.memory
        plan["memory"] = dataclasses.asdict(memory) | {"total": memory.total}
        plan["collectives"] = {c.kind: {"count": c.count, "bytes": c.bytes} for c in found}
        plan["compile_seconds"] = time.perf_counter() - began
        if not plan["fits"]:
            plan |= {"largest": _largest(text), "advice": _ADVICE[name]}
        passed, sent = memory.arguments + memory.outputs, sum(c.bytes for c in found)
    if topology.chip is not None:
        chip = topology.chip
        # Every input is read once and every output is written once.
        floors = chip.floors(plan["flops"] / plan["chips"], passed * argument_passes(programs, name))
        if sent is not None:
            floors["interconnect"] = sent / chip.links
        plan |= {"chip_memory": chip.memory, "floors_seconds": floors, "least_seconds": max(floors.values())}
        if mean_tokens and name in ("train", "decode"):
            plan["at_mean"] = _at_mean(programs, call, plan, stage, topology, mean_tokens)
    return plan


def _at_mean(
    programs: Programs, call: Call, plan: dict[str, Any], stage: StageConfig, topology: Topology, tokens: int
) -> dict[str, Any]:
    """Returns the floors of a train step for episodes of a mean length, or of decode whose longest slot has this length.

    A train step differs if the stage's objective is packed, and decode if `rollout.decode_lengths` has a length that covers it.
    """
    chip, floors, rollout = topology.chip, plan["floors_seconds"], programs.recipe.rollout
    assert chip is not None
    if plan["program"] == "train":
        share = programs.batch_shape(stage).filled_share(tokens)
        found: dict[str, Any] = {"filled_share": share}
        floors = {floor: seconds * (1.0 if floor == "memory" else share) for floor, seconds in floors.items()}
    else:
        capacity, cache = programs.recipe.limits.tokens, call.arguments[1].cache
        reach = rollout.reach(tokens, capacity) or capacity
        unread = argument_bytes(Call(None, (cache.keys, cache.values))) * (capacity - reach) // capacity
        found = {"positions": reach, "bytes_per_step": argument_bytes(call) - unread}
        flops = program_flops(programs, "decode", stage, reach=reach) / plan["chips"]
        floors = floors | chip.floors(flops, found["bytes_per_step"] * argument_passes(programs, "decode"))
    return {"tokens": tokens, **found, "floors_seconds": floors, "least_seconds": max(floors.values())}


def check_kernels(text: str, attention: str, name: str) -> None:
    """Raises ConfigError if attention is a kernel and the compiled program does not call it."""
    if name in ("train", "prefill") and find_back_end(attention).mark not in text:
        raise ConfigError(f"config.model.attention: is {attention}, but the compiled program {name} calls no kernel")


_ROLLOUT = ("reshard", "prefill", "decode")  # programs that make or take all weights of rollout

_ADVICE = {
    "train": "more chips, fewer rows per chip (batch_size), --config.model.remat=layer, --config.model.attention=splash, "
    "a smaller logprob_chunk",
    "reshard": "a larger rollout.tensor, rollout.dtype bfloat16, or rollout.weights int8",
    "prefill": "shorter rollout.prefill_lengths, fewer rollout.prefill_rows or rollout.slots, a larger rollout.tensor",
    "decode": "fewer rollout.slots, smaller limits.tokens, a larger rollout.tensor, rollout.dtype bfloat16, "
    "rollout.weights int8",
    "maps": "rollout.dtype bfloat16",
    "masks": "fewer rollout.turn_masks, fewer rollout.mask_rows, rollout.dtype bfloat16",
}


def _too_large(error: Exception, lowered: Any, name: str) -> dict[str, Any]:
    """Returns the plan of a program that does not fit: the compiler's message, the largest arrays and advice."""
    needs = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    with tempfile.TemporaryDirectory() as directory:
        # The message has only the total size; the arrays are in the dump of the program that failed to compile.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            lowered.compile(compiler_options={"xla_dump_to": directory, "xla_dump_hlo_as_text": True})
        texts = [path.read_text() for path in Path(directory).glob("*oom_intermediate_module.txt")]
    return {"fits": False, "needs": needs, "largest": [v for text in texts for v in _largest(text)], "advice": _ADVICE[name]}


def _largest(text: str) -> list[dict[str, Any]]:
    return [dataclasses.asdict(value) for value in largest_values(text, 6)]


def describe(plan: dict[str, Any]) -> str:
    """Formats a plan as text."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lines = [f"{plan['program']} {plan['stage']}".rstrip() + f" on {plan['topology']}, {plan['chips']} chips, mesh {mesh}"]
    if "needs" in plan:
        lines.append(f"  does not fit: {plan['needs']}")
    else:
        memory, of = plan["memory"], f" of {_gib(plan['chip_memory'])}" if "chip_memory" in plan else ""
        if plan["fits"] is None:
            lines.append(f"  arguments: {_gib(memory['arguments'])}{of} GiB per chip; the rest needs a GPU to compile")
        else:
            parts = ", ".join(f"{part} {_gib(memory[part])}" for part in ("arguments", "temporaries", "outputs", "aliased"))
            lines.append(f"  {'fits' if plan['fits'] else 'does not fit'}: {_gib(memory['total'])}{of} GiB per chip ({parts})")
        for kind, c in plan.get("collectives", {}).items():
            lines.append(f"  {kind}: {c['count']} per chip, {c['bytes'] / 1e6:,.1f} MB")
        if "rollout_weights" in plan:
            lines.append(f"  weights of rollout: {_gib(plan['rollout_weights'])} GiB per chip")
        lines.append(f"  {plan['flops'] / 1e12:,.2f} TFLOP in total")
        if "floors_seconds" in plan:
            lines.append(f"  {_least(plan)}")
        if "at_mean" in plan:
            mean = plan["at_mean"]
            if "filled_share" in mean:
                filled = f"episodes of {mean['tokens']} tokens on average, {mean['filled_share']:.0%} of the micro-batches"
            else:
                filled = f"at most {mean['tokens']} tokens in a slot, {mean['bytes_per_step'] / 1e9:,.3f} GB per chip and token"
            lines.append(f"  with {filled}: {_least(mean)}")
    if plan["fits"] is False:
        lines += [f"  {_gib(value['bytes'])} GiB: {value['shape']} {value['name']}" for value in plan.get("largest", ())]
        lines.append(f"  try: {_ADVICE[plan['program']]}")
    if "compile_seconds" in plan:
        lines.append(f"  lowered and compiled in {plan['compile_seconds']:.0f} s")
    return "\n".join(lines)


def _least(plan: dict[str, Any]) -> str:
    floors = ", ".join(f"{name} {cli.duration(value)}" for name, value in plan["floors_seconds"].items())
    return f"at least {cli.duration(plan['least_seconds'])} ({floors})"


def row(plan: dict[str, Any]) -> str:
    """Formats the plan of a TPU program as a row of a Markdown table (`launch/plan_table.sh`)."""
    mesh = " x ".join(str(size) for size in plan["mesh"].values())
    cells = [" ".join(filter(None, (plan["program"], plan["stage"]))), plan["topology"], mesh]
    if "needs" in plan:
        cells += [f"does not fit: {plan['needs']}", "", "", "", ""]
    else:
        floors = plan["floors_seconds"]
        cells += [f"{_gib(plan['memory']['total'])} of {_gib(plan['chip_memory'])}", cli.duration(plan["least_seconds"])]
        cells += [cli.duration(floors[name]) for name in ("compute", "memory", "interconnect")]
    return f"| {' | '.join(cells)} |"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def main() -> None:
    if flags.FLAGS.config is None:
        raise ConfigError("--config: a recipe FILE is required; --help shows examples")
    recipe = Recipe.from_config(flags.FLAGS.config)
    topology = find_topology(flags.FLAGS.topology)
    if flags.FLAGS.row and topology.platform != "tpu":
        raise ConfigError(f"--row: the table lists TPUs only, got --topology={flags.FLAGS.topology}")
    stage = flags.FLAGS.stage or recipe.schedule[-1]
    if stage not in recipe.stages:
        raise ConfigError(f"--stage={stage}: unknown stage; the recipe has {', '.join(recipe.stages)}")
    find_back_end(recipe.model.attention, dtype=recipe.model.dtype, platform=topology.platform)
    mesh = make_mesh(**dataclasses.asdict(recipe.mesh), devices=topology.devices)
    programs = Programs(recipe, build.model_config(recipe), mesh)
    if missing := set(flags.FLAGS.program) - set(programs.names):
        raise ConfigError(f"--program={min(missing)}: no protocol of the recipe makes masks; choose from {', '.join(NAMES)}")
    mean = flags.FLAGS.mean_tokens
    if not 0 <= mean <= recipe.limits.tokens:
        raise ConfigError(f"--mean_tokens: got {mean}, expected 0 (no mean) to {recipe.limits.tokens}, config.limits.tokens")
    plans = [make_plan(programs, name, stage, topology, mean) for name in flags.FLAGS.program or programs.names]
    shown = row if flags.FLAGS.row else describe
    print(json.dumps(plans, indent=2) if flags.FLAGS.json else "\n".join(map(shown, plans)))
    if any(plan["fits"] is False for plan in plans):
        raise SystemExit(1)


def define_flags() -> None:
    with subject("What to plan"):
        config_flag.define(Recipe, "Recipe file, for example configs/quickstart.py.")
        flags.DEFINE_string("topology", "v5e:2x2", "Devices to plan for: a TPU slice such as v5e:8x8, gpu:8, or cpu.")
        flags.DEFINE_multi_enum("program", [], (*NAMES, *MASK_NAMES), "Plan this program (repeatable; default: all).")
        flags.DEFINE_string("stage", "", "Plan the training step of this stage (default: the last stage of the schedule).")
        flags.DEFINE_integer(
            "mean_tokens",
            0,
            "train, decode: Also print the least time for episodes of this mean length. 0 means none. It is shorter for a "
            "stage whose objective is packed, with rows filled to the last token, and for a rollout with decode_lengths, whose "
            "longest slot then has this length.",
        )
    with subject("Output"):
        flags.DEFINE_boolean("json", False, "Print JSON.")
        flags.DEFINE_boolean("row", False, "Print rows of a Markdown table.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
