"""Benchmark of masks in rollout: a model that makes masks, beside the same model without them."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vitar_jax.bench.pairs import Pair, run_pair
from vitar_jax.bench.scripted import ScriptedEpisode
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trace_parser import SEG
from vitar_jax.errors import ConfigError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.scheduler import Scheduler
from vitar_jax.rollout.weights import rollout_weights

_TOKENS = 16  # distinct tokens of all turns, one of which is [SEG]


def measure(
    recipe: Recipe,
    *,
    rounds: int,
    say: Callable[[str], None],
    samples: int = 16,
    group_size: int = 8,
    turns: tuple[int, int] = (48, 64),
) -> dict[str, float]:
    """Plays groups of one turn with random weights, alternately with and without masks.

    Args:
      recipe: The model's sizes, images and rollout settings, and a protocol whose turns have masks.
      turns: Minimum and maximum number of tokens of a turn; the recipe's limits may be lower. About one token of sixteen is a
        `[SEG]`.

    Returns:
      `episodes_per_second` with masks, the `ratio` of the time to that without, and the number of `masks` per episode.

    Raises:
      ConfigError: If no protocol of the recipe has masks.
    """
    protocol = next((one for one in recipe.used_protocols.values() if one.makes_masks), None)
    if protocol is None:
        raise ConfigError(f"--config: the recipe has no protocol with {SEG}")
    with tempfile.TemporaryDirectory() as directory:
        processor = build.processor(recipe, Path(directory))
    config = build.model_config(recipe, processor)
    chat, rng = processor.chat, np.random.default_rng(0)
    ordinary = [token for token in chat.token_ids.tolist() if token not in chat.added_ids][: _TOKENS - 1]
    banned = ~np.isin(np.arange(config.text.vocab_size), [*ordinary, chat.token_id(SEG)])
    leaders, source = [], load_source(recipe.evaluation)
    for index in range(samples):
        leaders.append(ScriptedEpisode(source[index], dataclasses.replace(protocol, max_turns=1), processor, recipe.limits))
    # A slot has no room for tokens past the limits.
    room = min(recipe.limits.turn_tokens, recipe.limits.tokens - max(len(leader.token_ids) for leader in leaders))
    least, most = (min(length, room) for length in turns)
    for leader in leaders:
        leader.lengths = rng.integers(least, most + 1, (group_size, 1))

    engine = Engine(recipe.rollout, processor, recipe.limits, banned)
    weights = rollout_weights(build.random_model(recipe, config), dtype=recipe.rollout.dtype)
    sides = {"with": weights, "without": dataclasses.replace(weights, masks=None)}
    played: dict[str, Sequence[Episode]] = {}

    def play(side: str) -> None:
        groups = [[leader.fork(member) for member in range(group_size)] for leader in leaders]
        for _ in Scheduler(engine, sides[side]).play(groups):
            pass
        played[side] = [episode for group in groups for episode in group]

    for side, of_side in sides.items():
        Scheduler(engine, of_side).warm_up((group_size,))
        play(side)
    assert [e.token_ids for e in played["with"]] == [e.token_ids for e in played["without"]]
    made = sum(mask.mask is not None for episode in played["with"] for turn in episode.turns for mask in turn.masks)
    say(f"{samples * group_size} episodes of {least} to {most} tokens with {made} masks; {recipe.rollout.dtype}")
    row = run_pair(Pair("rollout", "masks", ours=partial(play, "without"), peer=partial(play, "with")), rounds)
    return {
        "episodes_per_second": samples * group_size / float(np.median(row.peer_seconds)),
        "ratio": row.ratio,
        "masks": made / (samples * group_size),
    }


def text(found: dict[str, float]) -> str:
    """Formats the result of `measure`."""
    return (
        f"rollout with masks: {found['episodes_per_second']:.1f} episodes/s, {found['masks']:.1f} masks each; takes "
        f"{found['ratio']:.2f} times as long as without masks"
    )
