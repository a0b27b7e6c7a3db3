"""What the compiled training programs hold in memory: logits of all tokens over a large vocabulary never exist."""

import math
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.kit import tiny
from vitar_jax.learning.grpo import GRPO
from vitar_jax.learning.optimizer import OptimizerConfig, make_optimizer
from vitar_jax.learning.sft import SFT
from vitar_jax.learning.train_state import TrainState, first_state
from vitar_jax.learning.train_step import make_train_step
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.qwen2_5_vl import Qwen2_5_VL
from vitar_jax.models.registry import config_from_hf
from vitar_jax.processing.packing import Batch, BatchShape, batch_layout
from vitar_jax.processing.positions import SizeClass

pytestmark = pytest.mark.slow

VOCAB = 151_936  # Qwen2.5-VL-3B's
ROWS, TOKENS, IMAGES = 8, 512, 1
POLICY_TOKENS = ROWS * TOKENS  # nothing is masked: the worst case
CHUNK = 128
WHOLE = 4 * POLICY_TOKENS * VOCAB  # bytes of all logits in fp32, 2.3 GiB


def abstract_batch(config: ModelConfig) -> Batch:
    shape = BatchShape(1, ROWS, TOKENS, IMAGES, SizeClass(1, tiny.WINDOW_PATCHES), POLICY_TOKENS)
    layout = batch_layout(shape, config.vision.patch_width, ("advantages", "old_logprobs"))
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), layout)


@cache
def compiled(grpo: bool, chunk: int) -> Any:
    """A whole train step of a narrow model, compiled and never run."""
    config = config_from_hf(tiny.hf_config(vocab_size=VOCAB, num_hidden_layers=1).to_dict(), remat="layer")
    optimizer = make_optimizer(OptimizerConfig(1e-3), steps=1)

    def create() -> TrainState:
        model: Any = Qwen2_5_VL(config, key=jax.random.key(0))
        return first_state(model, optimizer)

    step: Any = make_train_step(
        GRPO() if grpo else SFT(), optimizer, jnp.zeros(VOCAB, bool), max_tokens=POLICY_TOKENS, chunk=chunk
    )
    return step.lower(jax.eval_shape(create), abstract_batch(config)).compile()


def largest_logits(program: Any) -> int:
    """Most tokens of any array of the program that has the vocabulary among its dimensions."""
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", program.as_text())}
    wide = [math.prod(shape) // VOCAB for shape in shapes if VOCAB in shape]
    return max(wide)


@pytest.mark.parametrize("grpo", [False, True], ids=["sft", "grpo"])
def test_logits_of_all_tokens_never_exist(grpo: bool) -> None:
    program = compiled(grpo, CHUNK)
    assert program.memory_analysis().temp_size_in_bytes < WHOLE / 4
    assert largest_logits(program) == CHUNK


@pytest.mark.parametrize("grpo", [False, True], ids=["sft", "grpo"])
def test_in_one_chunk_they_do(grpo: bool) -> None:
    program = compiled(grpo, POLICY_TOKENS)
    assert program.memory_analysis().temp_size_in_bytes > WHOLE
    assert largest_logits(program) == POLICY_TOKENS


def test_the_backward_pass_sums_the_heads_gradient_and_stacks_nothing() -> None:
    """A stack of each chunk's gradient would be as many heads as there are chunks."""
    width = 64
    shapes = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", compiled(False, CHUNK).as_text())
    heads = {dims for dims in shapes if {str(VOCAB), str(width)} <= set(dims.split(","))}
    assert heads and all(math.prod(map(int, dims.split(","))) == VOCAB * width for dims in heads)
