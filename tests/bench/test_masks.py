"""Both sides of the masks bench compute the same, and a model that differs is not timed. No time is judged."""

from typing import Any

import pytest

from tests.bench.test_bench import TINY_DEEPSTACK, check
from tests.kit import micro_qwen3, vrt
from tests.kit.masked import SAM2
from vitar_jax.bench import masked_rollout, masks
from vitar_jax.bench.masks import MASK_CASES, MaskCase
from vitar_jax.bench.pairs import Disagreement
from vitar_jax.experiment.recipe import Recipe

pytestmark = pytest.mark.usefixtures("short_timings")

TINY = MaskCase("tiny", SAM2, masks=3)


def test_cases_are_possible() -> None:
    cases = [*MASK_CASES.values(), TINY]
    assert [case.config.problem() for case in cases] == [None] * len(cases)


@pytest.mark.slow
def test_both_sides_compute_the_same() -> None:
    said: list[str] = []
    rows = masks.measure([TINY], rounds=2, say=said.append)
    check(rows, ["encode", "decode", "decode, gradient"], 2)
    assert [row.pair.items for row in rows] == [1, 3, 3] and sum("agrees" in line for line in said) == 3


@pytest.mark.sweep
def test_a_model_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    load = masks.load_sam2

    def turned(*arguments: Any) -> Any:
        model = load(*arguments)
        weight = model.mask_decoder.iou_token.weight
        weight[...] = -weight[...]
        return model

    monkeypatch.setattr(masks, "load_sam2", turned)
    with pytest.raises(Disagreement, match="tiny decode: got outputs with a relative difference"):
        masks.measure([TINY], rounds=1, say=lambda _: None)


@pytest.mark.sweep
def test_decoding_with_states_beside_decoding_without() -> None:
    ratios = masks.states_ratio(2, TINY_DEEPSTACK.config, slots=4, steps=8)
    assert len(ratios) == 2 and min(ratios) > 0 and "target at most 1.03" in masks.states_text(ratios)


@pytest.mark.sweep
def test_rollout_with_masks_beside_rollout_without() -> None:
    config: Any = micro_qwen3.get_config()
    config.model.family = "sa2va_chat"
    config.model.sam2 = {"trunk": vars(SAM2.trunk), "decoder": vars(SAM2.decoder), "image_size": SAM2.image_size}
    config.processor.tokenizer = vrt.folder().name
    config.stages.grpo.protocol = "vrt"
    config.limits.tokens = 600
    config.rollout.prefill_lengths = (256,)
    said: list[str] = []
    found = masked_rollout.measure(
        Recipe.from_config(config), rounds=2, say=said.append, samples=2, group_size=2, turns=(20, 64)
    )
    assert said[0].startswith(f"4 episodes of 20 to {config.limits.turn_tokens} tokens with ")
    assert found["masks"] > 0 and found["ratio"] > 0 and "masks each" in masked_rollout.text(found)
