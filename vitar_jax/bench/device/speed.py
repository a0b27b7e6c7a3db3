"""Measures the work of a recipe on this machine's devices: prefill, decode, steps of SFT and whole steps of GRPO."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.bench.decode_lengths import Chunk
from vitar_jax.bench.device.parts import Rates, Speed
from vitar_jax.bench.device.recipes import Scale, trains_adapters
from vitar_jax.bench.pairs import run_alone
from vitar_jax.bench.rates import copy_rate, matrix_product
from vitar_jax.bench.stage_steps import StageSteps
from vitar_jax.experiment import build
from vitar_jax.experiment.program_bytes import argument_bytes, argument_passes
from vitar_jax.experiment.program_flops import program_flops
from vitar_jax.experiment.programs import Call
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.experiment.trainer import Run
from vitar_jax.rollout import sampler
from vitar_jax.rollout.weights import RolloutWeights

_STEPS = 2  # measured steps, after one that compiles
_ROUNDS = 3


def measure_rates(scale: Scale) -> list[Rates]:
    """Returns the rates of one device."""
    product = run_alone(matrix_product(scale.matrix, scale.dtype), _ROUNDS)
    return [Rates(2 * scale.matrix**3 / product, copy_rate(scale.copied))]


def measure_prefill(recipe: Recipe, size: str) -> list[Speed]:
    """Times the largest prefill: full rows of text tokens, into empty slots."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(recipe, Path(scratch))
    call, weights = run.programs.call("prefill", recipe.stages["sft"]), random_weights(run)
    state: Any = sampler.create_state(weights, recipe.rollout.slots, recipe.limits.tokens)
    features, slots, starts, token_ids, index, positions, counts = (jnp.zeros(a.shape, a.dtype) for a in call.arguments[2:])
    slots += jnp.arange(len(slots), dtype=slots.dtype)[:, None]
    positions += jnp.arange(positions.shape[-1], dtype=positions.dtype)
    arrays = (features, slots, starts, token_ids, index - 1, positions, counts + token_ids.shape[1])
    placed = [jax.device_put(x, a.sharding) for x, a in zip(arrays, call.arguments[2:], strict=True)]

    def prefill() -> None:
        nonlocal state
        state = jax.block_until_ready(sampler.prefill(weights, state, *placed))

    return [_of_program(run, "prefill", "sft", Speed("prefill", size, run_alone(prefill, _ROUNDS)), call)]


def measure_decode(recipe: Recipe, size: str) -> list[Speed]:
    """Times a chunk of tokens in all slots, whose caches are full at its end."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(recipe, Path(scratch))
    weights, rollout, capacity = random_weights(run), recipe.rollout, recipe.limits.tokens
    chunk = Chunk(weights, rollout.slots, capacity, capacity, rollout.chunk)
    seconds = run_alone(chunk, _ROUNDS)
    read = argument_bytes(Call(None, (weights.layers, weights.norm, weights.head)))
    cache = argument_bytes(Call(None, (chunk.state.cache.keys, chunk.state.cache.values)))
    live = 1 - (rollout.chunk + 1) / 2 / capacity  # mean share of the cache before a token
    found = Speed(f"decode, {rollout.slots} slots", size, seconds, moved=rollout.chunk * (read + live * cache))
    return [_of_program(run, "decode", "sft", found, run.programs.call("decode", recipe.stages["sft"]))]


def measure_sft(recipe: Recipe, size: str) -> list[Speed]:
    """Times the update of SFT on rows of an image and text."""
    with tempfile.TemporaryDirectory() as scratch:
        steps = StageSteps(Run(recipe, Path(scratch)), "sft")
        for _ in range(1 + _STEPS):
            steps.step()
    return [_update("SFT update", steps, size)]


def measure_grpo(recipe: Recipe, size: str, mean_turn: int) -> list[Speed]:
    """Times whole steps of GRPO on image-tool episodes, and their updates.

    All tokens of a set of `mean_turn` are equally likely, one of which ends the turn.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(recipe, Path(scratch))
        chat = run.processor.chat
        ordinary = [token for token in chat.token_ids.tolist() if token not in chat.added_ids][: mean_turn - 1]
        run.banned[:] = ~np.isin(np.arange(len(run.banned)), [*ordinary, chat.im_end])
        steps, kinds = StageSteps(run, "grpo"), []
        for _ in range(1 + _STEPS):
            run.engine.stats.reset(blocking=True)
            steps.step()
            kinds.append(run.engine.stats.seconds)
    number = min(range(1, 1 + _STEPS), key=lambda number: sum(steps.spent[number].values()))
    spent = dict(steps.spent[number])
    # The host's share of the engine's times has what the engine does not measure, as well as the time after the rollout.
    phases = {kind: seconds for kind, seconds in kinds[number].items() if kind != "host"}
    phases["host"] = spent.pop("rollout") - sum(phases.values())
    phases |= spent
    return [Speed("GRPO step", size, sum(phases.values()), phases=phases), _update("GRPO update", steps, size)]


def _update(name: str, steps: StageSteps, size: str) -> Speed:
    seconds = min(spent["update"] for spent in steps.spent[1:])
    stage = next(stage for stage, config in steps.run.recipe.stages.items() if config is steps.stage)
    name += " of adapters" if trains_adapters(steps.run.recipe) else ""
    call = steps.run.programs.train(steps.stage, jnp.asarray(steps.run.banned))
    return _of_program(steps.run, "train", stage, Speed(name, size, seconds), call)


def _of_program(run: Run, name: str, stage: str, found: Speed, call: Call) -> Speed:
    """Adds a program's FLOPs and bytes per device, as `vitar_jax.plan` counts them."""
    flops = program_flops(run.programs, name, run.recipe.stages[stage]) / run.programs.mesh.size
    return dataclasses.replace(found, flops=flops, passed=argument_bytes(call) * argument_passes(run.programs, name))


def random_weights(run: Run) -> RolloutWeights:
    """Returns rollout's weights of a random model."""
    make = jax.jit(partial(build.random_model, run.recipe, run.model_config), out_shardings=run.programs.model_shardings)
    return run.programs.resharder(make())
