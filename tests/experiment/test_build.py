"""Batch shapes: whatever a recipe's limits admit has room, or the recipe is refused by the key that makes room."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import micro, tiny
from tests.kit.recipes import load_config
from vitar_jax.errors import ConfigError, ImageError
from vitar_jax.experiment import build
from vitar_jax.experiment.recipe import Recipe, StageConfig
from vitar_jax.learning.experts import ExpertsConfig
from vitar_jax.processing.packing import BatchShape, Example, pack

PROCESSOR = tiny.processor(4)
PATCHES = np.zeros((4, PROCESSOR.patch_width), np.float32)


def stage_of(stage: str, images: int = 4, turns: int = 2, **changes: Any) -> tuple[Recipe, StageConfig]:
    config = micro.get_config()
    config.limits.images = images
    config.protocols.vitar.max_turns = turns
    group_size = changes.pop("group_size", None)
    config.stages[stage].update(row_images=0, tokens=0, policy_tokens=0)
    config.stages[stage].update(changes)
    if group_size:
        config.stages[stage].objective.group_size = group_size
    recipe = Recipe.from_config(config)
    return recipe, recipe.stages[stage]


def full(row: int, group: int, own: int, tools: int) -> Example:
    """An example that fills its row, with `own` images of its group and one more for each of `tools`."""
    names = [*(f"{group}-{n}" for n in range(own)), *(f"{row}-tool-{n}" for n in range(tools))]
    text = np.zeros(104, np.int32)
    return Example(
        name=f"row-{row}",
        token_ids=text,
        loss_mask=np.arange(104) < 0,
        position_ids=np.zeros((3, 104), np.int32),
        vision_index=text - 1,
        patches=(PATCHES,) * len(names),
        grids=((1, 2, 2),) * len(names),
        content_ids=tuple(names),
    )


@given(
    st.sampled_from(["sft", "grpo"]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
    st.integers(1, 3),
)
@settings(max_examples=30)
def test_all_images_that_the_limits_admit_have_room(
    name: str, images: int, turns: int, group: int, batch: int, micro_rows: int, shards: int
) -> None:
    recipe, stage = stage_of(
        name, images, turns, batch_size=batch, micro_rows=micro_rows, **({"group_size": group} if name == "grpo" else {})
    )
    shape = build.batch_shape(recipe, stage, bins=shards, shards=shards)
    shape = BatchShape(shape.bins, shape.rows, shape.tokens, shape.images, PROCESSOR.size_classes[0], shape.policy_tokens)
    size = stage.objective.rows_per_sample
    for own in range(images + 1):
        tools = min(turns - 1, images - own)
        packed = pack([full(row, row // size, own, tools) for row in range(batch * size)], shape, PROCESSOR)
        assert (packed.segment_ids > 0).any(axis=-1).sum() == batch * size


def test_samples_of_one_image_take_the_room_that_they_took() -> None:
    for stage, rows in (("sft", 4), ("grpo", 4)):
        recipe, chosen = stage_of(stage, images=2)
        assert build.batch_shape(recipe, chosen, bins=1, shards=1).images == {"sft": 8, "grpo": 6}[stage]
        recipe, chosen = stage_of(stage, images=2, turns=1, row_images=1)
        assert build.batch_shape(recipe, chosen, bins=1, shards=1).images == rows


def test_an_experts_episodes_have_rows_and_share_the_samples_images() -> None:
    """Two samples with eight episodes of up to three turns each, and six of an expert: one image each, and two per episode."""
    recipe, alone = stage_of("grpo", images=3, turns=3, batch_size=2, group_size=8)
    experts = ExpertsConfig(traces=("somewhere",), searches=6)
    beside = dataclasses.replace(alone, objective=dataclasses.replace(alone.objective, experts=experts))
    for stage, rows in ((alone, 16), (beside, 28)):
        shape = build.batch_shape(recipe, stage, bins=1, shards=1)
        assert (shape.rows, shape.images) == (rows, 2 + 2 * rows)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"row_images": 2}, "config.stages.grpo.row_images: got 2, .* need 3 per row; .* config.limits.images"),
        ({"tokens": 103}, "config.stages.grpo.tokens: got 103, .* need 104 per row; .* config.limits.tokens"),
        ({"policy_tokens": 55}, "config.stages.grpo.policy_tokens: got 55, .* need 56 per row; .* config.limits.turn_tokens"),
    ],
)
def test_room_that_a_played_episode_can_exceed_is_refused(changes: dict[str, int], message: str) -> None:
    """Otherwise a step could end after its rollout."""
    recipe, stage = stage_of("grpo", **changes)
    with pytest.raises(ConfigError, match=message):
        build.batch_shape(recipe, stage, bins=1, shards=1)
    key, value = next(iter(changes.items()))
    build.batch_shape(*stage_of("grpo", **{key: value + 1}), bins=1, shards=1)
    build.batch_shape(*stage_of("sft", **changes), bins=1, shards=1)  # a batch that is full is closed early


@pytest.mark.parametrize("windows", [1, 4, 6, 12, 60])
def test_images_that_no_size_class_holds_are_said(windows: int) -> None:
    processor = tiny.processor(windows)
    ratio, message = processor.fitting_aspect_ratio(), build.unheld_images(processor)

    def fits(width: int, height: int) -> bool:
        try:
            processor.size_class((1, *(side // 14 for side in processor.images.target_size(height, width))))
        except ImageError:
            return False
        return True

    assert ratio > 0 or not fits(500, 500)
    for tried in np.linspace(1, 0.99 * ratio, 7) if ratio else ():
        short = math.ceil(1000 / tried)
        assert fits(1000, short) and fits(short, 1000)
    assert fits(20_000, 101) == (ratio == 200)
    assert message.startswith("config.processor.size_classes: ") == (ratio < 10)
    assert (f"thinner than {ratio:.1f} to 1" in message) == (0 < ratio < 10)


@pytest.mark.slow
def test_the_large_recipes_hold_images_of_nine_to_one(test_data: Path, tmp_path: Path) -> None:
    for name in ("vitar_7b", "vitar_3b"):
        config = load_config(name)
        config.data.update(sets="none", processor=str(test_data / "qwen2_5_vl_7b_instruct"))
        processor = build.processor(Recipe.from_config(config), tmp_path)
        assert 9 < processor.fitting_aspect_ratio() < 10
        assert "thinner than 9." in build.unheld_images(processor)
