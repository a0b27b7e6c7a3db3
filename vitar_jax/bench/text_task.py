"""The task of the training benchmark: text-only questions, with prompts and replies of equal length, so nothing is padded."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitar_jax.bench.scripted import rollout_cases
from vitar_jax.bench.torch_peer import save_random_weights
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.optimizer import OptimizerConfig
from vitar_jax.learning.rewards import RewardConfig, reward
from vitar_jax.learning.sft import SFT

_PROTOCOL = "plain"  # one turn, whose whole text is the answer
# Each word is one token of the quickstart's tokenizer, with or without a leading space.
_WORDS = ("upper", "middle", "lower", "left", "centre", "right", "close", "medium", "wide", "flat", "rows", "columns", "checks")
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4,
    weight_decay=0.0,  # the sides decay different parameters
    epsilon=1e-4,  # at the default, Adam divides noise by noise where gradients are nearly 0, and the sides would disagree
)
# TRL adds 1e-4 to a group's standard deviation. The first update has the sampler's probabilities, so it clips nothing.
OBJECTIVE = GRPO("grpo", rewards={"odd": RewardConfig("odd")}, epsilon=1e-4)


@dataclasses.dataclass(frozen=True)
class TrainCase:
    """A model, and the batch of one step.

    Attributes:
      recipe: The model's sizes and the rollout settings.
      target: Minimum speed of our GRPO step relative to TRL's. None means no target.
      questions: Number of questions per GRPO step, each answered `group_size` times. An SFT step has the same number of rows.
      prompt_tokens, reply_tokens: Number of tokens per row.
    """

    name: str
    recipe: Recipe
    target: float | None
    questions: int = 4
    group_size: int = 8
    prompt_tokens: int = 64
    reply_tokens: int = 128

    @property
    def rows(self) -> int:
        return self.questions * self.group_size

    @property
    def tokens(self) -> int:
        """Number of tokens per step."""
        return self.rows * (self.prompt_tokens + self.reply_tokens)


_TARGETS = {"quickstart": None, "10m": 2.0}


def train_cases(quickstart: Recipe) -> dict[str, TrainCase]:
    """Returns the cases by name: the quickstart's model and a larger one.

    Args:
      quickstart: The recipe of `configs/quickstart.py`.
    """
    recipes = rollout_cases(quickstart)
    return {name: TrainCase(name, recipes[name].recipe, target) for name, target in _TARGETS.items()}


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A case with its weights and questions in files.

    Attributes:
      recipe: The recipe, with the stages `sft` and `grpo`.
      model: Directory of the initial weights of both stages.
      prompts: Prompts of a GRPO step, as text.
    """

    case: TrainCase
    recipe: Recipe
    model: Path
    prompts: tuple[str, ...]

    @classmethod
    def write(cls, case: TrainCase, directory: Path, seed: int = 0) -> "TextTask":
        """Writes tokenizer, questions and random weights to `directory`."""
        processor = build.processor(case.recipe, directory)
        protocol = case.recipe.all_protocols[_PROTOCOL]
        limits = Limits(tokens=case.prompt_tokens + case.reply_tokens, turn_tokens=case.reply_tokens, images=1)
        markup = len(Episode(Sample("", "", (), ""), protocol, processor, limits).token_ids)
        rng, sources = np.random.default_rng(seed), {}
        for stage, count in (("sft", case.rows), ("grpo", case.questions)):
            file = directory / f"{stage}.jsonl"
            # A reply also has an end-of-turn token.
            rows = [
                {
                    "question": " ".join(rng.choice(_WORDS, case.prompt_tokens - markup)),
                    "answer": " ".join(rng.choice(_WORDS, case.reply_tokens - 1)),
                }
                for _ in range(count)
            ]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sources[stage] = SourceConfig("questions", options={"file": str(file)})
        model = directory / "model"
        save_random_weights(build.model_config(case.recipe, processor), model)
        recipe = dataclasses.replace(
            case.recipe,
            model=dataclasses.replace(case.recipe.model, pretrained=str(model)),
            processor=dataclasses.replace(case.recipe.processor, size_classes=((1, 4),)),  # unused, there are no images
            limits=limits,
            rollout=dataclasses.replace(
                case.recipe.rollout,
                slots=case.rows,
                prefill_lengths=(case.prompt_tokens,),
                prefill_rows=case.questions,
                chunk=case.reply_tokens,
                quorum=case.rows,
            ),
            stages=_stages(case, sources),
            schedule=("sft", "grpo"),
            evaluation=sources["grpo"],
        )
        prompts = [Episode(sample, protocol, processor, limits).token_ids for sample in load_source(sources["grpo"])]
        return cls(case, recipe, model, tuple(map(processor.chat.decode, prompts)))


def _stages(case: TrainCase, sources: Mapping[str, SourceConfig]) -> dict[str, StageConfig]:
    """Returns both stages. Each of their batches holds all questions."""
    sft = StageConfig(
        sources={"questions": sources["sft"]},
        protocol=_PROTOCOL,
        steps=1,  # any number, because the learning rate is constant
        batch_size=case.rows,
        optimizer=OPTIMIZER,
        objective=SFT("sft"),
        train=("decoder", "embeddings"),
    )
    grpo = dataclasses.replace(
        sft,
        sources={"questions": sources["grpo"]},
        batch_size=case.questions,
        objective=dataclasses.replace(OBJECTIVE, group_size=case.group_size),
    )
    return {"sft": sft, "grpo": grpo}


def odd_share(token_ids: Sequence[int]) -> float:
    """Returns the reward of a reply, the fraction of odd token ids: it is cheap and varies within a group."""
    return float(np.mean(np.asarray(token_ids) % 2))


@reward("odd", odd=1.0)
def _odd(trajectory: Trajectory) -> dict[str, float]:
    return {"odd": odd_share([token for token, own in zip(trajectory.token_ids, trajectory.loss_mask, strict=True) if own])}
