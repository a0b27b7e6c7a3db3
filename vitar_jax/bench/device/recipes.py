"""Recipes of the device benchmark: random weights of published sizes, SFT, and GRPO on episodes that always use a tool."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vitar_jax.bench.cases import CASES, TINY
from vitar_jax.data.sources import SourceConfig
from vitar_jax.episodes.actions import ParsedTurn, ToolCall
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.parsers import Parser
from vitar_jax.episodes.sample import Sample
from vitar_jax.experiment.recipe import MeshChoice, ModelChoice, ProcessorChoice, Recipe, StageConfig
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.optimizer import OptimizerConfig
from vitar_jax.learning.sft import SFT
from vitar_jax.models.lora import LoraConfig
from vitar_jax.models.registry import abstract_model
from vitar_jax.rollout.config import RolloutConfig

_SYSTEM, _QUESTION = "Look twice.", "Where is the lesion?"
_FLAT = 1e4  # a temperature at which all tokens that are not banned are equally likely, whatever the weights
_LORA = LoraConfig(rank=64, alpha=128.0)
_FULL_BYTES = 16  # per weight: the fp32 weight, its gradient and two moments
_FULL_SHARE = 0.6  # of the memory; the rest is for activations and the weights of rollout


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the measurements.

    Attributes:
      models: Models to measure, by their names in `bench/cases.py`, smallest first.
      matrix: Side of the matrices whose product is timed.
      copied: Bytes that a copy copies.
      image: Width and height of images, in pixels.
      tokens, turn_tokens: Maximum number of tokens of an episode, and of a turn.
      mean_turn: Mean number of tokens of a turn, if none is cut off.
      slots, prefill_tokens, prefill_rows, chunk: Sizes of rollout.
      rows: Rows of a step of SFT, in which `micro_rows` are computed at a time.
      questions, group_size: Questions of a step of GRPO, and episodes per question.
    """

    models: tuple[str, ...]
    dtype: str
    remat: str
    matrix: int
    copied: int
    image: int
    tokens: int
    turn_tokens: int
    mean_turn: int
    slots: int
    prefill_tokens: int
    prefill_rows: int
    chunk: int
    rows: int
    micro_rows: int
    questions: int
    group_size: int


ACCELERATOR = Scale(
    models=("3b", "7b"),
    dtype="bfloat16",
    remat="dots",
    matrix=8192,
    copied=2**30,
    image=448,
    tokens=1536,
    turn_tokens=384,
    mean_turn=96,
    slots=64,
    prefill_tokens=512,
    prefill_rows=8,
    chunk=64,
    rows=8,
    micro_rows=2,
    questions=16,
    group_size=8,
)
CPU = Scale(
    models=("tiny",),
    dtype="float32",
    remat="none",
    matrix=256,
    copied=2**20,
    image=112,
    tokens=256,
    turn_tokens=24,
    mean_turn=8,
    slots=4,
    prefill_tokens=128,
    prefill_rows=2,
    chunk=8,
    rows=2,
    micro_rows=1,
    questions=2,
    group_size=2,
)


def make_recipe(scale: Scale, model: str, attention: str, devices: Sequence[Any], memory: float) -> Recipe:
    """Returns a recipe with the stages `sft` and `grpo`. If full training needs too much memory, both train adapters.

    Args:
      memory: Bytes of one device.
    """
    case = dataclasses.replace({**CASES, **TINY}[model], image_side=scale.image)
    text, vision = case.config.text, case.config.vision
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_model(case.config)))
    adapters = _FULL_BYTES * weights > _FULL_SHARE * memory * len(devices)
    answer = scale.tokens // 2
    samples = SourceConfig(f"{__name__}:noise_samples", options={"side": scale.image, "answer": answer})
    sft = StageConfig(
        sources={"noise": samples},
        protocol="plain",
        steps=1,  # any number, because the learning rate is constant
        batch_size=scale.rows * len(devices),
        micro_rows=scale.micro_rows,
        optimizer=OptimizerConfig(learning_rate=1e-6),
        objective=SFT("sft"),
        policy_tokens=answer + 1,
        row_images=1,
        logprob_chunk=512,
    )
    if adapters:
        sft = dataclasses.replace(sft, train=("decoder",), lora=_LORA)
    grpo = dataclasses.replace(
        sft,
        protocol="zoom",
        batch_size=scale.questions,
        policy_tokens=0,
        row_images=0,
        objective=GRPO("grpo", group_size=scale.group_size, temperature=_FLAT),
    )
    size_class = dataclasses.astuple(case.size_class)
    return Recipe(
        model=ModelChoice(
            family=case.config.model_type,
            text=vars(text),
            vision=vars(vision),
            dtype=scale.dtype,
            remat=scale.remat,
            attention=attention,
        ),
        processor=ProcessorChoice(f"{__name__}:save_tokenizer", (size_class,), max_pixels=scale.image**2),
        protocols={
            "plain": {"system": _SYSTEM},
            "zoom": {
                "system": _SYSTEM,
                "tools": ("zoom",),
                "max_turns": 2,
                "parser": f"{__name__}:ZOOMING",
                "observation": "Closer.",
                "frame": "normalized",
            },
        },
        limits=Limits(tokens=scale.tokens, turn_tokens=scale.turn_tokens, images=2),
        rollout=RolloutConfig(
            slots=scale.slots,
            prefill_lengths=(scale.prefill_tokens,),
            prefill_rows=scale.prefill_rows,
            chunk=scale.chunk,
            dtype=scale.dtype,
            tensor=math.gcd(len(devices), text.num_key_value_heads),
        ),
        stages={"sft": sft, "grpo": grpo},
        schedule=("sft", "grpo"),
        evaluation=samples,
        mesh=MeshChoice(),
    )


def trains_adapters(recipe: Recipe) -> bool:
    return recipe.stages["sft"].lora is not None


def noise_samples(split: str, *, side: int, answer: int, count: int = 64) -> list[Sample]:
    """Returns samples with square grey images of noise, and answers of `answer` letters, each of which is one token."""
    rng = np.random.default_rng(len(split))
    images = (Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)) for _ in range(count))
    return [Sample(f"noise-{number}", _QUESTION, (image,), "a" * answer) for number, image in enumerate(images)]


def _zoom(text: str) -> ParsedTurn:
    return ParsedTurn(text, None, ToolCall("zoom", ((0.25, 0.25, 0.75, 0.75),)))


ZOOMING = Parser(_zoom)  # every turn is a call of the tool, whatever random weights write


def save_tokenizer(directory: str | os.PathLike[str], extra: Sequence[str] = ()) -> None:
    """Writes a tokenizer whose tokens are bytes, with the markup of Qwen's chat as added tokens."""
    del extra
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    markup = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", special=True, normalized=False) for name in markup])
    Path(directory).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(directory) / "tokenizer.json"))
