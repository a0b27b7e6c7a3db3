"""The analytic counts against torch's counter, which watches the products that Hugging Face's module makes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
from peft import PeftModel
from torch.utils.flop_counter import FlopCounterMode

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.models.flops import BACKWARD, PartFlops, head_flops, step_flops, text_flops
from vitar_jax.models.lora import LoraConfig, add_lora, save_adapter
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.qwen2_5_vl.flops import products, vision_flops
from vitar_jax.models.registry import config_from_hf

SIZE = (168, 112)  # 6 x 4 tokens, in windows of 2 x 2 without a gap
WINDOWS = 6


def counted(*, backward: bool) -> tuple[int, int, int, int]:
    """FLOPs that torch counts: vision tower, decoder, head; and those of the whole, the backward pass included."""
    theirs, _ = tiny.pretrained()
    processor = tiny.processor(WINDOWS)
    example = tiny.example("e", [noise(*SIZE), "Which texture is it?"], processor)
    inputs = tiny.hf_inputs(example.token_ids, [processor.process(noise(*SIZE))])
    with FlopCounterMode(display=False) as counter:
        logits = theirs(**inputs).logits
        if backward:
            logits.sum().backward()
    theirs.zero_grad()
    modules = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    vision, decoder, head = (
        next(flops for name, flops in modules.items() if name.endswith(suffix))
        for suffix in (".visual", ".language_model", ".lm_head")
    )
    return vision, decoder, head, counter.get_total_flops()


def test_forward_counts_are_torchs() -> None:
    config = config_from_hf(tiny.hf_config().to_dict())
    tokens = tiny.example("e", [noise(*SIZE), "Which texture is it?"], tiny.processor(WINDOWS)).token_ids.size
    vision, decoder, head, total = counted(backward=False)
    assert vision_flops(config.vision, images=1, windows=WINDOWS, window_patches=tiny.WINDOW_PATCHES) == vision
    assert text_flops(config.text, rows=1, tokens=tokens) == decoder
    assert head_flops(config.text, tokens=tokens) == head
    assert vision + decoder + head == total


def test_a_backward_pass_is_two_forward_passes() -> None:
    """But for the patch embedding, whose input, the pixels, needs no gradient."""
    config = config_from_hf(tiny.hf_config().to_dict()).vision
    *_, forward = counted(backward=False)
    *_, total = counted(backward=True)
    patches = WINDOWS * tiny.WINDOW_PATCHES
    assert (1 + BACKWARD) * forward - total == 2 * patches * config.patch_width * config.hidden_size


IMAGE = {"images": 1, "windows": WINDOWS, "window_patches": tiny.WINDOW_PATCHES}


def counted_step(theirs: Any) -> int:
    """FLOPs of a forward and a backward pass, by torch; ours count the backward pass of the patch embedding's input too."""
    processor = tiny.processor(WINDOWS)
    example = tiny.example("e", [noise(*SIZE), "Which texture is it?"], processor)
    with FlopCounterMode(display=False) as counter:
        theirs(**tiny.hf_inputs(example.token_ids, [processor.process(noise(*SIZE))])).logits.sum().backward()
    return counter.get_total_flops()


def ours_of_step(learning: Sequence[str], adapters: int = 0) -> tuple[int, int]:
    """Our count, with adapters in the decoder; and the tokens."""
    config = config_from_hf(tiny.hf_config().to_dict())
    tokens = tiny.example("e", [noise(*SIZE), "Which texture is it?"], tiny.processor(WINDOWS)).token_ids.size
    counted = products(config, **IMAGE, rows=1, tokens=tokens, scored_tokens=tokens)
    parts = [
        PartFlops(of.weights, part in learning, of.attention, adapters * (part == "decoder")) for part, of in counted.items()
    ]
    return step_flops(parts), tokens


@pytest.mark.parametrize("learning", [("decoder", "head"), ("embeddings",), ("merger",), ("merger", "decoder")])
def test_what_is_frozen_costs_no_gradient(learning: Sequence[str]) -> None:
    theirs: Any = tiny.hf_model(tiny.hf_config())
    places = {"merger": "visual.merger", "vision": "visual", "embeddings": "embed_tokens", "head": "lm_head"}
    for name, weight in theirs.named_parameters():
        weight.requires_grad = next((part for part, place in places.items() if place in name), "decoder") in learning
    assert ours_of_step(learning)[0] == counted_step(theirs)


def test_adapters_cost_their_own_products_and_no_gradient_of_weights(tmp_path: Path) -> None:
    """But for what the first layer reads, which needs no gradient."""
    config = LoraConfig(rank=4, alpha=8.0)
    adapted = add_lora(tiny.pretrained()[1], config, jax.random.key(0), lambda path: path.startswith("model/"))
    save_adapter(adapted, config, tmp_path, base="")
    theirs = PeftModel.from_pretrained(tiny.hf_model(tiny.hf_config()), tmp_path, is_trainable=True)  # type: ignore[arg-type]
    sizes = {path: leaf.size for path, leaf in leaf_paths(adapted.model)}
    adapters = sum(size for path, size in sizes.items() if "/lora/" in path)
    _, tokens = ours_of_step(())
    first = sum(sizes[f"layers/self_attn/{name}_proj/{leaf}"] // 3 for name in "qkv" for leaf in ("kernel", "lora/a"))
    assert ours_of_step(("decoder",), 2 * tokens * adapters)[0] == counted_step(theirs) + 2 * tokens * first
