"""The device benchmark as a list of parts, most useful first, for the devices of this machine."""

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax

from vitar_jax.bench.device import kernels, logits, recipes, speed
from vitar_jax.bench.device.kernels import Shapes
from vitar_jax.bench.device.parts import Outcome, Part, Row, run_parts
from vitar_jax.bench.device.recipes import Scale
from vitar_jax.bench.device.record import make_record, markdown
from vitar_jax.experiment.manifest import versions
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.attention import BACK_ENDS
from vitar_jax.parallel.topology import chip_of
from vitar_jax.runtime.crash_safe import atomic_replace

# Expected minutes of each kind of part, by the name of the model: estimates. Those of 3b and 7b are for one H200, from what
# `vitar_jax.plan` counts and a minute of compilation; no accelerator has run them.
_MINUTES = {
    "kernels": {"": 0.8, "tiny": 0.1},
    "logits": {"": 0.5, "tiny": 0.2},
    "rates": {"": 0.2, "tiny": 0.1},
    "prefill": {"3b": 0.8, "7b": 0.8, "tiny": 0.2},
    "decode": {"3b": 0.7, "7b": 0.7, "tiny": 0.2},
    "SFT": {"3b": 1.0, "7b": 1.2, "tiny": 0.3},
    "GRPO": {"3b": 2.2, "7b": 2.6, "tiny": 0.6},
}
_ON_ACCELERATOR = Shapes((28, 4, 128), (16, 16, 80), rows=2, tokens=2048, new=256, patches=4096, windows=64, window_patches=64)
_ON_CPU = Shapes((4, 2, 16), (2, 2, 16), rows=2, tokens=48, new=8, patches=64, windows=4, window_patches=16)


def benchmark(minutes: float, output: Path, say: Callable[[str], None]) -> bool:
    """Runs the benchmark, writes the record to `output` and its table to a file beside it, `.md`, and prints the table.

    Both files are complete after every part. The sizes of all work follow from the kind of the devices.

    Returns:
      Whether no part failed, and no time is less than the floor that `vitar_jax.plan` states for a known device.
    """
    devices = jax.local_devices()
    on_cpu, scale = devices[0].platform == "cpu", recipes.CPU if devices[0].platform == "cpu" else recipes.ACCELERATOR
    facts = versions() | {
        "command": f"python -m vitar_jax.bench device --minutes={minutes:g}",
        "date": time.strftime("%d %B %Y", time.gmtime()).lstrip("0"),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "dtype": scale.dtype,
    }
    record: dict[str, Any] = {}

    def write(outcomes: Sequence[Outcome]) -> None:
        nonlocal record
        record = make_record(facts, outcomes, chip_of(devices[0]), targets=not on_cpu)
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, text in ((output, json.dumps(record, indent=2) + "\n"), (output.with_suffix(".md"), markdown(record))):
            with atomic_replace(path) as partly:
                partly.write_text(text)

    run_parts(make_parts(scale, devices, _ON_CPU if on_cpu else _ON_ACCELERATOR), minutes, say, write)
    say(f"\n{markdown(record)}\nwritten to {output} and {output.with_suffix('.md')}")
    return not record["problems"]


def make_parts(scale: Scale, devices: Sequence[Any], shapes: Shapes) -> list[Part]:
    """Returns the parts. A part makes its own weights, which are freed after it."""
    platform = devices[0].platform
    attention = next((name for name, back_end in BACK_ENDS.items() if back_end.platform == platform), "xla")
    memory = _memory(devices[0])
    common = scale.models[0] if scale is recipes.CPU else ""

    @cache
    def recipe(model: str) -> Recipe:
        return recipes.make_recipe(scale, model, attention, devices, memory)

    def measured(measure: Callable[[Recipe, str], Sequence[Row]], model: str) -> Sequence[Row]:
        return measure(recipe(model), model)

    grpo = partial(speed.measure_grpo, mean_turn=scale.mean_turn)
    parts = [
        Part("kernels", _MINUTES["kernels"][common], partial(kernels.check_kernels, shapes, platform)),
        Part("logits", _MINUTES["logits"][common], partial(logits.check_logits, attention)),
        Part("rates", _MINUTES["rates"][common], partial(speed.measure_rates, scale)),
    ]
    for model in scale.models:
        for kind, measure in (("prefill", speed.measure_prefill), ("decode", speed.measure_decode), ("SFT", speed.measure_sft)):
            parts.append(Part(f"{kind} {model}", _MINUTES[kind][model], partial(measured, measure, model)))
    # The largest model's first: it is what a user waits for, and the time may not suffice for both.
    parts += [Part(f"GRPO {model}", _MINUTES["GRPO"][model], partial(measured, grpo, model)) for model in scale.models[::-1]]
    return parts


def _memory(device: Any) -> float:
    """Returns the bytes of a device, or infinity if they are unknown."""
    chip = chip_of(device)
    return (device.memory_stats() or {}).get("bytes_limit") or (chip.memory if chip else math.inf)
