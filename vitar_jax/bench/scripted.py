"""Scripted episodes, whose turns have fixed lengths and actions, so both sides of a rollout do equal work on random weights."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitar_jax.bench.cases import CASES
from vitar_jax.data.sources import load_source
from vitar_jax.episodes.actions import ParsedTurn, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.models.config import ModelConfig
from vitar_jax.processing.banned import banned_tokens
from vitar_jax.processing.processor import Processor

# Side, in pixels, of the quickstart's images and of the boxes that its experts zoom into.
_PICTURE, _ZOOM = 448, 56


class Zooming(Protocol):
    """A protocol that parses every turn as a zoom into a box, which depends on the turn's text."""

    def read(self, text: str) -> ParsedTurn:
        left, upper = np.random.default_rng(zlib.crc32(text.encode())).uniform(0, _PICTURE - _ZOOM, 2)
        return ParsedTurn(None, None, ToolCall("zoom", ((left, upper, left + _ZOOM, upper + _ZOOM),)))


class ScriptedEpisode(Episode):
    """An episode whose turns have fixed lengths. Every turn but the last is a zoom.

    Attributes:
      lengths: [members, turns], number of tokens of each turn of each member of the group.
    """

    lengths: np.ndarray

    @property
    def turn_budget(self) -> int:
        return int(self.lengths[self.member, len(self.turns)])

    def add_turn(self, token_ids: Sequence[int], logprobs: Sequence[float] | None, **others: Any) -> None:
        """Adds a turn. Appends the end-of-turn token, which is banned from sampling, with log-probability 0."""
        if len(self.turns) + 1 < self.protocol.max_turns:
            token_ids, logprobs = [*token_ids, self.processor.chat.im_end], [*(logprobs or ()), 0.0]
        super().add_turn(token_ids, logprobs, **others)


@dataclass(frozen=True)
class RolloutCase:
    """A model and the episodes it plays.

    Attributes:
      recipe: The model's sizes, images, limits and rollout settings.
      turns: Minimum and maximum number of tokens of each turn. Lengths are uniform between them.
      target: Minimum speed of ours relative to the peer's.
      samples: Number of samples, each played `group_size` times.
    """

    name: str
    recipe: Recipe
    turns: tuple[tuple[int, int], ...]
    target: float
    samples: int = 32
    group_size: int = 8


@dataclass(frozen=True)
class Script:
    """The processor and the episodes of a case.

    Attributes:
      leaders: One episode per sample, with its prompt. Members of a group are forks of it.
      banned: bool [V], includes the end-of-turn token.
    """

    case: RolloutCase
    config: ModelConfig
    processor: Processor
    leaders: list[ScriptedEpisode]
    banned: np.ndarray

    @classmethod
    def write(cls, case: RolloutCase, directory: Path, seed: int = 0) -> "Script":
        """Builds the tokenizer in `directory` and samples the lengths of the turns."""
        recipe, rng = case.recipe, np.random.default_rng(seed)
        processor = build.processor(recipe, directory)
        config = build.model_config(recipe, processor)
        protocol: dict[str, Any] = {**vars(recipe.all_protocols["vitar"]), "frame": "original"}
        source = load_source(recipe.stages["grpo"].sources["look"])
        least, most = np.transpose(case.turns)
        leaders = []
        for index in range(case.samples):
            leaders.append(ScriptedEpisode(source[index], Zooming(**protocol), processor, recipe.limits))
            leaders[-1].lengths = rng.integers(least, most + 1, (case.group_size, len(case.turns)))
        banned = banned_tokens(processor.chat, config.text.vocab_size)
        banned[processor.chat.im_end] = True
        return cls(case, config, processor, leaders, banned)

    def groups(self) -> list[list[Episode]]:
        """Returns all episodes, with their prompts only."""
        return [[leader.fork(member) for member in range(self.case.group_size)] for leader in self.leaders]

    @property
    def episodes(self) -> int:
        return self.case.samples * self.case.group_size

    @property
    def tokens(self) -> int:
        """Number of tokens that the episodes sample."""
        return sum(int(leader.lengths.sum()) for leader in self.leaders)


_TURNS = ((16, 28), (6, 12))  # the quickstart's experts write 20 to 22 tokens, then 9
ON_CPU, ON_GPU = ("quickstart", "10m"), ("7b",)


def rollout_cases(quickstart: Recipe) -> dict[str, RolloutCase]:
    """Returns the cases by name, smallest first: the quickstart's episodes, played by models of its family from `bench model`.

    Args:
      quickstart: The recipe of `configs/quickstart.py` or `configs/quickstart_qwen3.py`.
    """
    model, processor, rollout = quickstart.model, quickstart.processor, quickstart.rollout
    family = model.find_family().model_type
    models = {  # by size, the last part of a case's name
        case.name.rpartition("_")[2]: replace(model, text=vars(case.config.text), vision=vars(case.config.vision))
        for case in CASES.values()
        if case.config.model_type == family
    }
    cases = [RolloutCase("quickstart", quickstart, _TURNS, target=8.0)]
    if "10m" in models:
        cases.append(RolloutCase("10m", replace(quickstart, model=models["10m"]), _TURNS, target=2.5))
    if "7b" in models:
        recipe = replace(
            quickstart,
            model=replace(models["7b"], dtype="bfloat16", attention="cudnn"),
            processor=replace(processor, max_pixels=_PICTURE * _PICTURE, size_classes=((16, 64),)),
            limits=Limits(tokens=1024, turn_tokens=160, images=2),
            rollout=replace(rollout, prefill_lengths=(288,), chunk=32, dtype="bfloat16"),
        )
        cases.append(RolloutCase("7b", recipe, turns=((96, 160), (48, 80)), target=5.0))
    return {case.name: case for case in cases}
