"""Rollout beside two loops on torch: the same episodes with the same weights, and where our time goes.

`rollout, generate` is beside a loop over `generate`, as users write it; `rollout, by hand` beside one that calls the module
itself, from compiled functions where that is faster.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitar_jax.bench.generate_loop import GenerateLoop
from vitar_jax.bench.pairs import Disagreement, Pair, Row, check_agreement, fastest, run_pair, seconds
from vitar_jax.bench.scripted import RolloutCase, Script
from vitar_jax.bench.torch_loop import Loop
from vitar_jax.bench.torch_peer import Setting, save_random_weights, settings
from vitar_jax.episodes.episode import Episode
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

_TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
_FLOOR_SHARE, _HOST_SHARE = 0.6, 0.1  # targets on a GPU: at least, and under


class Ours:
    """Our engine over a script."""

    def __init__(self, directory: Path, script: Script):
        recipe = script.case.recipe
        self.view = rollout_weights(load_pretrained(directory, **recipe.model.computation), dtype=recipe.rollout.dtype)
        self.engine = Engine(recipe.rollout, script.processor, recipe.limits, script.banned)
        self.engine.warm_up(self.view, group_sizes=(script.case.group_size,))

    def play(self, groups: Sequence[Sequence[Episode]]) -> None:
        for _ in self.engine.play(self.view, groups):
            pass


def measure(
    cases: Sequence[RolloutCase], *, rounds: int, try_compile: bool, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Times every case in turns, after the peer was found to give our tokens the log-probabilities that we recorded.

    Args:
      try_compile: whether torch.compile is among the ways in which the loop by hand is tried.
      say: is told what goes on.

    Returns:
      The rows, and by case what was counted in one more play of ours that waits for the device after each piece of work.

    Raises:
      Disagreement: log-probabilities differ by more than 1e-3 of their size, or 5e-2 in bf16.
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
        for name, peer, ways, target in peers:  # one after the other, as both use one module
            rows.append(run_pair(_agreeing_pair(name, script, ours, peer, ways, target, say), rounds))
            sides = [np.median(side) for side in (rows[-1].ours_seconds, rows[-1].peer_seconds)]
            rates = [f"{script.tokens / side:.0f}" for side in sides]
            say(f"{case.name}: {rates[0]} generated tokens a second, {name} {rates[1]}")
        counts[case.name] = count(script, ours)
    return rows, counts


def describe(script: Script) -> str:
    case, leader = script.case, script.leaders[0]
    turns = " and ".join(f"{least} to {most}" for least, most in case.turns)
    return (
        f"{case.name}: {script.episodes} episodes, {case.samples} samples by {case.group_size}, on "
        f"{case.recipe.rollout.slots} slots; prompts of {len(leader.token_ids)} tokens, turns of {turns}, images of "
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
    """The whole script with the peer at its fastest, its log-probabilities compared."""
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
    """Relative distance of the log-probabilities that both sides give to the tokens that we draw.

    Raises:
      Disagreement: it is too large, or the episodes differ.
    """
    drawn, told = script.groups(), script.groups()
    ours.play(drawn)
    played = {(episode.sample.sample_id, episode.member): episode for group in drawn for episode in group}

    def follow(episode: Episode) -> Sequence[int]:
        guide = played[episode.sample.sample_id, episode.member]
        start = len(episode.token_ids)
        return guide.token_ids[start : start + episode.turn_budget]

    peer.play(told, follow)
    if [e.token_ids for group in drawn for e in group] != [e.token_ids for group in told for e in group]:
        raise Disagreement(f"{script.case.name}: the two sides' episodes differ")
    mine, theirs = ([p for group in side for e in group for p in e.logprobs if p is not None] for side in (drawn, told))
    return check_agreement(f"{script.case.name} log-probabilities", mine, theirs, _TOLERANCES[script.config.dtype])


def count(script: Script, ours: Ours) -> dict[str, float]:
    """Shares of the time by kind of work, occupancy of slots, and tokens read and saved; on a GPU also the bandwidth floor's
    share of decode."""
    stats, groups = ours.engine.stats, script.groups()
    stats.reset(blocking=True)
    ours.play(groups)
    spent = stats.seconds
    counted = {name: value / sum(spent.values()) for name, value in spent.items()}
    counted |= {"occupancy": stats.occupancy, "prefilled": stats.prefilled, "shared": stats.shared}
    if jax.default_backend() == "gpu":
        steps = stats.slot_steps // script.case.recipe.rollout.slots
        counted["floor"] = decode_bytes(ours.view, groups, steps) / copy_rate() / spent["decode"]
    return counted


def decode_bytes(view: RolloutWeights, groups: Sequence[Sequence[Episode]], steps: int) -> int:
    """Least bytes that decoding moves: all weights at every step, and for each token that it reads the cache before it.

    Decoding does not read the last token of a turn.
    """
    text = view.config.text
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((view.layers, view.norm, view.head)))
    itemsize = view.head.dtype.itemsize
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * itemsize
    live = sum(sum(range(turn.start, turn.end - 1)) for group in groups for episode in group for turn in episode.turns)
    return steps * weights + live * token


def copy_rate(size: int = 2**30) -> float:
    """Bytes a second that the device reads and writes when it copies `size` bytes."""
    array, copy = jnp.zeros(size, jnp.uint8), jax.jit(lambda x: x + 1)

    def run() -> Any:
        return copy(array).block_until_ready()

    run()
    return 2 * size / min(seconds(run) for _ in range(10))


def counts_text(name: str, counted: dict[str, float]) -> str:
    """What `count` found, for people."""
    kinds = ", ".join(f"{kind} {counted[kind]:.0%}" for kind in ("decode", "prefill", "vision", "tools", "host"))
    text = (
        f"{name}: slots {counted['occupancy']:.0%} occupied; {kinds}; "
        f"{counted['prefilled']:.0f} tokens prefilled, {counted['shared']:.0f} more shared by groups"
    )
    if "floor" in counted:
        floor, host = counted["floor"] >= _FLOOR_SHARE, counted["host"] < _HOST_SHARE
        text += (
            f"\n{name}: decode at {counted['floor']:.0%} of the bandwidth floor, target {_FLOOR_SHARE:.0%} "
            f"{'met' if floor else 'MISSED'}; host's target under {_HOST_SHARE:.0%} {'met' if host else 'MISSED'}"
        )
    return text
