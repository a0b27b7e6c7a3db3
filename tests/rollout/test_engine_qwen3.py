"""Rollout of Qwen3-VL: recorded log-probabilities equal teacher-forced ones, with DeepStack in every image that is read."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from tests.kit import micro_qwen3, tiny_qwen3
from tests.kit.rollout import (
    BLIND,
    DRAWN,
    LIMITS,
    SIZES,
    assert_nothing_compiles,
    banned,
    episodes,
    run,
    sample,
    teacher_forced_difference,
)
from vitar_jax.episodes.episode import Episode
from vitar_jax.experiment import build
from vitar_jax.experiment.programs import Programs
from vitar_jax.experiment.recipe import Recipe
from vitar_jax.parallel.mesh import make_mesh
from vitar_jax.rollout import sampler
from vitar_jax.rollout.engine import Engine
from vitar_jax.rollout.weights import RolloutWeights, rollout_weights

pytestmark = pytest.mark.slow

PROCESSOR = tiny_qwen3.processor()
TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@cache
def engine() -> tuple[Engine, RolloutWeights]:
    return Engine(SIZES, PROCESSOR, LIMITS, banned()), rollout_weights(tiny_qwen3.pretrained()[1])


def difference(played: list[Episode]) -> np.ndarray:
    return teacher_forced_difference(played, tiny_qwen3.pretrained()[1], PROCESSOR)


@pytest.mark.slow
def test_nothing_compiles_after_the_warm_up() -> None:
    """The first test, so that the others take the programs that it compiles."""
    assert_nothing_compiles(*engine())


def test_recorded_logprobs_equal_teacher_forced_ones() -> None:
    played = episodes(6, processor=PROCESSOR)
    run(*engine(), played)
    assert any(len(episode.images) > 1 for episode in played)  # tools have returned images on the way
    assert difference(played).max() <= TOLERANCE


def test_a_group_that_shares_its_prompt_is_read_once_and_right() -> None:
    played = [episode.fork(member) for episode in episodes(2, processor=PROCESSOR) for member in range(3)]
    run(*engine(), played, DRAWN, 3)
    assert len({tuple(episode.token_ids) for episode in played}) > 2
    assert difference(played).max() <= TOLERANCE


def test_a_tools_image_without_deepstack_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = sampler.prefill

    def flat(view: RolloutWeights, state: Any, features: jax.Array, *, starts: np.ndarray, **others: Any) -> Any:
        if (starts > 0).any():  # an observation
            features = features.at[:, view.config.text.hidden_size :].set(0)
        return prefill(view, state, features, starts=starts, **others)

    monkeypatch.setattr(sampler, "prefill", flat)
    played = [Episode(sample(n), BLIND, PROCESSOR, LIMITS) for n in range(6)]
    for episode in played:  # one at a time, so that no first image is read with another's observation
        run(*engine(), [episode])
    found = difference(played)
    looked = np.array([len(episode.images) > 1 for episode in played])
    assert looked.any() and found[~looked].max(initial=0) <= TOLERANCE and found[looked].max() >= 100 * TOLERANCE


def test_decode_is_the_same_program_without_deepstack() -> None:
    def program(*taken: int) -> str:
        config = micro_qwen3.get_config()
        config.model.vision.deepstack_visual_indexes = taken
        recipe = Recipe.from_config(config)
        programs = Programs(recipe, build.model_config(recipe), make_mesh())
        return programs.call("decode", recipe.stages["grpo"]).lower().as_text()

    assert program(0) == program()
