"""Benchmark of drafts in rollout: a checkpoint plays the episodes of GRPO steps with `rollout.draft_tokens` and without.

A model of random weights writes nothing that a draft could foresee, so this needs one that was trained.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitar_jax.bench.pairs import Pair, run_pair
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.trajectory import Sampling
from vitar_jax.errors import ConfigError
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.learning.grpo import GRPO
from vitar_jax.rollout.checkpoint import Checkpoint, load_rollout_weights
from vitar_jax.rollout.drafts import WrittenTexts
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.scheduler import Scheduler


def measure(
    recipe: Recipe, checkpoint: str | Path, *, drafted: int, steps: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Plays the held-out samples of `steps` steps of the recipe's GRPO stage, alternately with drafts and without.

    Each timing starts without any text to draft from, except what the protocol's writer writes.

    Args:
      drafted: `rollout.draft_tokens` of the side with drafts.

    Returns:
      The numbers of `episodes`, of those that `differ` between the sides, of `tokens` and decode `passes` of each side, the
      `tokens_per_pass` of a slot with drafts, and the `ratio` of the time without drafts to that with them, with its `ratios`.

    Raises:
      ConfigError: If no stage of the recipe has the objective grpo.
    """
    stage = next((stage for stage in recipe.stages.values() if isinstance(stage.objective, GRPO)), None)
    if stage is None or not isinstance(stage.objective, GRPO):
        raise ConfigError("--config: the recipe has no stage with the objective grpo")
    opened = Checkpoint.open(checkpoint, dtype=recipe.rollout.dtype, attention=recipe.model.attention)
    processor, protocol = opened.settings.processor, recipe.all_protocols[stage.protocol]
    source, members, groups = load_source(recipe.evaluation), stage.objective.group_size, stage.batch_size
    leaders = [Episode(source[index], protocol, processor, recipe.limits) for index in range(steps * groups)]
    weights = load_rollout_weights(opened.folder, opened.config, recipe.rollout)
    engines = {
        side: Engine(dataclasses.replace(recipe.rollout, draft_tokens=count), processor, recipe.limits, opened.banned)
        for side, count in (("with", drafted), ("without", 0))
    }
    played: dict[str, list[Episode]] = {}

    def play(side: str) -> None:
        engine = engines[side]
        engine.written = WrittenTexts()
        played[side] = []
        engine.stats.reset()
        for step in range(steps):
            batch = [[leader.fork(member) for member in range(members)] for leader in leaders[step * groups :][:groups]]
            episodes = [episode for group in batch for episode in group]
            for episode in episodes:
                episode.sampling = Sampling(seed=step)
            for _ in Scheduler(engine, weights).play(batch):
                pass
            played[side] += episodes

    for side, engine in engines.items():
        Scheduler(engine, weights).warm_up((members,))
        play(side)
    stats = engines["with"].stats
    found: dict[str, Any] = {
        "episodes": len(leaders) * members,
        "differ": sum(a.token_ids != b.token_ids for a, b in zip(played["with"], played["without"], strict=True)),
        "tokens": stats.sampled,
        "passes": stats.passes,
        "passes_without": engines["without"].stats.passes,
        "tokens_per_pass": stats.sampled / (stats.sampled - stats.accepted),
    }
    say(text(found | {"ratio": float("nan")}, drafted))
    row = run_pair(Pair("rollout", "drafts", ours=partial(play, "with"), peer=partial(play, "without")), rounds)
    return found | {"ratio": row.ratio, "ratios": [float(ratio) for ratio in np.sort(row.ratios)]}


def text(found: dict[str, Any], drafted: int) -> str:
    """Formats the result of `measure`."""
    slots = f"a slot takes one pass per {found['tokens_per_pass']:.2f} tokens"
    return (
        f"rollout with {drafted} drafted tokens: {found['passes']} decode passes against {found['passes_without']} "
        f"({found['passes_without'] / found['passes']:.2f} times fewer), {slots}; {found['ratio']:.2f} times as fast; "
        f"{found['differ']} of {found['episodes']} episodes differ"
    )
