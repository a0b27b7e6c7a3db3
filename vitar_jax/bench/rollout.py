"""Benchmark of rollout against two loops on torch, with the same episodes and weights, and a breakdown of our time.

`rollout, generate` compares with a loop over `generate`, as users write it. `rollout, by hand` compares with a loop that calls
the module directly, compiled if that is faster.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.bench.cases import without_deepstack
from vitar_jax.bench.generate_loop import GenerateLoop
from vitar_jax.bench.pairs import Disagreement, Pair, Row, check_agreement, fastest, run_pair
from vitar_jax.bench.rates import copy_rate
from vitar_jax.bench.scripted import RolloutCase, Script
from vitar_jax.bench.torch_loop import Loop
from vitar_jax.bench.torch_peer import Setting, save_random_weights, settings
from vitar_jax.episodes.episode import Episode
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.models.registry import random_model
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

_TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
_FLOOR_SHARE, _HOST_SHARE = 0.6, 0.1  # targets on a GPU: minimum of the former, maximum of the latter
_DEEPSTACK_RATIO = 1.05  # target: decode does nothing for DeepStack, and times vary by some percent


class Ours:
    """A player of scripts that uses our engine."""

    def __init__(self, directory: Path, script: Script):
        recipe = script.case.recipe
        self.weights = rollout_weights(load_pretrained(directory, **recipe.model.computation), dtype=recipe.rollout.dtype)
        self.engine = Engine(recipe.rollout, script.processor, recipe.limits, script.banned)
        Scheduler(self.engine, self.weights).warm_up((script.case.group_size,))

    def play(self, groups: Sequence[Sequence[Episode]]) -> None:
        for _ in Scheduler(self.engine, self.weights).play(groups):
            pass


def measure(
    cases: Sequence[RolloutCase], *, rounds: int, try_compile: bool, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Checks that the peer gives our tokens our recorded log-probabilities, then times both sides alternately.

    Args:
      rounds: Number of timings per side.
      try_compile: Whether to try torch.compile among the settings of the loop by hand.
      say: Prints a line of progress.

    Returns:
      The rows, and the `count` of each case, by its name; with DeepStack also `deepstack`, the `deepstack_ratio`.

    Raises:
      Disagreement: If log-probabilities have a relative difference above 1e-3, or 5e-2 in bf16.
    """
    rows, counts = [], {}
    for case in cases:
        with tempfile.TemporaryDirectory() as directory:
            script = Script.write(case, Path(directory))
            weights = Path(directory) / "model"
            save_random_weights(script.config, weights)
            ours, by_hand = Ours(weights, script), Loop(weights, script)
        say(describe(script))
        peers: list[tuple[str, Loop | GenerateLoop, list[Setting], float | None]] = [
            ("generate", GenerateLoop(by_hand), settings(try_compile=False), case.target),
            ("by hand", by_hand, settings(try_compile=try_compile), None),
        ]
        for name, peer, ways, target in peers:  # sequentially, because both use one module
            rows.append(run_pair(_agreeing_pair(name, script, ours, peer, ways, target, say), rounds))
            sides = [np.median(side) for side in (rows[-1].ours_seconds, rows[-1].peer_seconds)]
            rates = [f"{script.tokens / side:.0f}" for side in sides]
            say(f"{case.name}: {rates[0]} generated tokens/s, {name} {rates[1]}")
        counts[case.name] = count(script, ours)
        if script.config.injection_levels:
            counts[case.name]["deepstack"] = deepstack_ratio(script, ours, rounds)
    return rows, counts


def describe(script: Script) -> str:
    """Returns a line about the size of a script."""
    case, leader = script.case, script.leaders[0]
    turns = " and ".join(f"{least} to {most}" for least, most in case.turns)
    return (
        f"{case.name}: {script.episodes} episodes ({case.samples} samples, groups of {case.group_size}) in "
        f"{case.recipe.rollout.slots} slots; tokens per prompt: {len(leader.token_ids)}, per turn: {turns}, per image: "
        f"{script.processor.tokens(leader.images[0].grid_thw)}; {case.recipe.rollout.dtype}"
    )


def _agreeing_pair(
    name: str,
    script: Script,
    ours: Ours,
    peer: Loop | GenerateLoop,
    ways: Sequence[Setting],
    target: float | None,
    say: Callable[[str], None],
) -> Pair:
    """Returns a pair for the whole script, with the peer's fastest setting, after comparing log-probabilities."""
    case = script.case

    def peers(setting: Setting) -> Callable[[], None]:
        peer.use(setting)
        return lambda: peer.play(script.groups())

    best, note = fastest(ways, peers)
    run_peer = peers(best)
    error = compare(script, ours, peer)
    say(f"{case.name}: log-probabilities agree to {error:.1e}; {name}: {note}")

    return Pair(
        name=f"rollout, {name}",
        size=case.name,
        ours=lambda: ours.play(script.groups()),
        peer=run_peer,
        target=target,
        items=script.episodes,
        peer_settings=str(best),
    )


def compare(script: Script, ours: Ours, peer: Loop | GenerateLoop) -> float:
    """Returns the relative distance between both sides' log-probabilities of the tokens that ours samples.

    Raises:
      Disagreement: If the distance is too large, or the episodes differ.
    """
    sampled, forced = script.groups(), script.groups()
    ours.play(sampled)
    played = {(episode.sample.sample_id, episode.member): episode for group in sampled for episode in group}

    def follow(episode: Episode) -> Sequence[int]:
        guide = played[episode.sample.sample_id, episode.member]
        start = len(episode.token_ids)
        return guide.token_ids[start : start + episode.turn_budget]

    peer.play(forced, follow)
    if [e.token_ids for group in sampled for e in group] != [e.token_ids for group in forced for e in group]:
        raise Disagreement(f"{script.case.name}: the two sides' episodes differ")
    mine, theirs = ([p for group in side for e in group for p in e.logprobs if p is not None] for side in (sampled, forced))
    return check_agreement(f"{script.case.name} log-probabilities", mine, theirs, _TOLERANCES[script.config.dtype])


def count(script: Script, ours: Ours) -> dict[str, float]:
    """Plays the script once more, waiting for the device after each piece of work, and returns statistics.

    Returns:
      The fraction of the time spent on each kind of work, the occupancy of the slots, and the numbers of prefilled and shared
      tokens. On a GPU also `floor`: the fraction of decode time that the memory bandwidth alone would need.
    """
    stats, groups = ours.engine.stats, script.groups()
    stats.reset(blocking=True)
    ours.play(groups)
    spent = stats.seconds
    counted = {name: value / sum(spent.values()) for name, value in spent.items()}
    counted |= {"occupancy": stats.occupancy, "prefilled": stats.prefilled, "shared": stats.shared}
    if jax.default_backend() == "gpu":
        steps = stats.slot_steps // script.case.recipe.rollout.slots
        counted["floor"] = decode_bytes(ours.weights, groups, steps) / copy_rate() / spent["decode"]
    return counted


def deepstack_ratio(script: Script, ours: Ours, rounds: int) -> float:
    """Returns the time of decoding the script, relative to that of a model without DeepStack: the median of `rounds` ratios."""
    flat = without_deepstack(ours.weights.config)
    visual = rollout_weights(random_model(flat), dtype=flat.dtype).visual
    sides, stats = (ours.weights, dataclasses.replace(ours.weights, visual=visual, config=flat)), ours.engine.stats
    ratios = []
    for number in range(1 + rounds):
        spent = []
        for weights in sides if number % 2 else sides[::-1]:
            stats.reset(blocking=True)
            for _ in Scheduler(ours.engine, weights).play(script.groups()):
                pass
            spent.append(stats.seconds["decode"])
        deep, plain = spent if number % 2 else spent[::-1]
        ratios.append(deep / plain)
    return float(np.median(ratios[1:]))  # the first round compiles


def decode_bytes(weights: RolloutWeights, groups: Sequence[Sequence[Episode]], steps: int) -> int:
    """Returns the minimum bytes that decode moves: all weights at each step, and for each input token the cache before it.

    The last token of a turn is never an input of decode.
    """
    text = weights.config.text
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((weights.layers, weights.norm, weights.head)))
    width = text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    token_bytes = 2 * width * jnp.dtype(weights.config.dtype).itemsize
    live = sum(sum(range(turn.start, turn.end - 1)) for group in groups for episode in group for turn in episode.turns)
    return steps * weight_bytes + live * token_bytes


def counts_text(name: str, counted: dict[str, float]) -> str:
    """Formats the statistics of `count`."""
    kinds = ", ".join(f"{kind} {counted[kind]:.0%}" for kind in ("decode", "prefill", "vision", "tools", "host"))
    text = (
        f"{name}: occupancy {counted['occupancy']:.0%}; {kinds}; "
        f"{counted['prefilled']:.0f} tokens prefilled, {counted['shared']:.0f} more shared by groups"
    )
    if "floor" in counted:
        floor, host = counted["floor"] >= _FLOOR_SHARE, counted["host"] < _HOST_SHARE
        text += (
            f"\n{name}: decode at {counted['floor']:.0%} of the bandwidth floor, target {_FLOOR_SHARE:.0%} "
            f"{'met' if floor else 'MISSED'}; host target under {_HOST_SHARE:.0%} {'met' if host else 'MISSED'}"
        )
    if "deepstack" in counted:
        text += (
            f"\n{name}: decode takes {counted['deepstack']:.2f} times as long as without DeepStack, target at most "
            f"{_DEEPSTACK_RATIO} {'met' if counted['deepstack'] <= _DEEPSTACK_RATIO else 'MISSED'}"
        )
    return text
