"""The analytic counts against torch's counter, which watches the products that Hugging Face's module makes."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest
from peft import PeftModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tests.kit import tiny, tiny_qwen3
from tests.kit.images import noise
from vitar_jax.models.family import Part
from vitar_jax.models.flops import BACKWARD, PartFlops, Products, step_flops
from vitar_jax.models.lora import LoraConfig, add_lora, save_adapter
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.registry import config_from_hf, family_of
from vitar_jax.processing.packing import Example
from vitar_jax.processing.processor import Processor

# Kit, processor and image of each family. An image of 6 x 4 tokens fills its size class; windows are of 2 x 2 tokens.
FAMILIES: dict[str, tuple[Any, Processor, Image.Image]] = {
    "qwen2_5_vl": (tiny, tiny.processor(6), noise(168, 112)),
    "qwen3_vl": (tiny_qwen3, tiny_qwen3.processor(), noise(192, 128)),
}


def example(family: str) -> Example:
    _, processor, image = FAMILIES[family]
    return tiny.example("e", [image, "Which texture is it?"], processor)


@cache
def counted(family: str) -> tuple[int, int, int, int, int]:
    """FLOPs that torch counts: vision tower, decoder, head; and those of the whole, without and with the backward pass."""
    kit, processor, image = FAMILIES[family]
    theirs = kit.pretrained()[0]
    inputs = tiny.hf_inputs(example(family).token_ids, [processor.process(image)])
    with FlopCounterMode(display=False) as counter:
        logits = theirs(**inputs).logits
        forward = counter.get_total_flops()
        modules = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        logits.sum().backward()
    theirs.zero_grad()
    vision, decoder, head = (
        next(flops for name, flops in modules.items() if name.endswith(suffix))
        for suffix in (".visual", ".language_model", ".lm_head")
    )
    return vision, decoder, head, forward, counter.get_total_flops()


def ours(family: str) -> dict[Part, Products]:
    """Our count of the same forward pass."""
    kit, processor, _ = FAMILIES[family]
    config = config_from_hf(kit.hf_config().to_dict())
    tokens = example(family).token_ids.size
    (size_class,) = processor.size_classes
    return family_of(config).products(
        config, images=1, **dataclasses.asdict(size_class), rows=1, tokens=tokens, scored_tokens=tokens
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_counts_are_torchs(family: str) -> None:
    """The tower's attention and all its mergers, the decoder and the head."""
    flops = {part: of.weights + of.attention for part, of in ours(family).items()}
    vision, decoder, head, forward, _ = counted(family)
    assert flops["vision"] + flops["merger"] == vision
    assert (flops["decoder"], flops["head"]) == (decoder, head)
    assert vision + decoder + head == forward


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backward_pass_is_two_forward_passes(family: str) -> None:
    """But for the patch embedding, whose input, the pixels, needs no gradient."""
    kit, processor, _ = FAMILIES[family]
    config = config_from_hf(kit.hf_config().to_dict()).vision
    *_, forward, total = counted(family)
    (size_class,) = processor.size_classes
    assert (1 + BACKWARD) * forward - total == 2 * size_class.slots * config.patch_width * config.hidden_size


def counted_step(theirs: Any, family: str = "qwen2_5_vl") -> int:
    """FLOPs of a forward and a backward pass, by torch; ours count the backward pass of the patch embedding's input too."""
    _, processor, image = FAMILIES[family]
    with FlopCounterMode(display=False) as counter:
        theirs(**tiny.hf_inputs(example(family).token_ids, [processor.process(image)])).logits.sum().backward()
    return counter.get_total_flops()


def ours_of_step(learning: Sequence[str], adapters: int = 0, family: str = "qwen2_5_vl") -> int:
    """Our count, with adapters in the decoder."""
    return step_flops(
        PartFlops(of.weights, part in learning, of.attention, adapters * (part == "decoder"))
        for part, of in ours(family).items()
    )


@pytest.mark.parametrize(
    "family, learning",
    [
        ("qwen2_5_vl", ("decoder", "head")),
        ("qwen2_5_vl", ("embeddings",)),
        ("qwen2_5_vl", ("merger",)),
        ("qwen2_5_vl", ("merger", "decoder")),
        ("qwen3_vl", ("merger",)),
    ],
)
def test_what_is_frozen_costs_no_gradient(family: str, learning: Sequence[str]) -> None:
    kit = FAMILIES[family][0]
    theirs: Any = kit.hf_model(kit.hf_config())
    places = {"merger": "merger", "visual": "vision", "embed_tokens": "embeddings", "lm_head": "head"}
    for name, weight in theirs.named_parameters():
        weight.requires_grad = next((part for place, part in places.items() if place in name), "decoder") in learning
    assert ours_of_step(learning, family=family) == counted_step(theirs, family)


def test_adapters_cost_their_own_products_and_no_gradient_of_weights(tmp_path: Path) -> None:
    """But for what the first layer reads, which needs no gradient."""
    config = LoraConfig(rank=4, alpha=8.0)
    adapted = add_lora(tiny.pretrained()[1], config, jax.random.key(0), lambda path: path.startswith("model/"))
    save_adapter(adapted, config, tmp_path, base="")
    theirs = PeftModel.from_pretrained(tiny.hf_model(tiny.hf_config()), tmp_path, is_trainable=True)  # type: ignore[arg-type]
    sizes = {path: leaf.size for path, leaf in leaf_paths(adapted.model)}
    adapters = sum(size for path, size in sizes.items() if "/lora/" in path)
    tokens = example("qwen2_5_vl").token_ids.size
    first = sum(sizes[f"layers/self_attn/{name}_proj/{leaf}"] // 3 for name in "qkv" for leaf in ("kernel", "lora/a"))
    assert ours_of_step(("decoder",), 2 * tokens * adapters) == counted_step(theirs) + 2 * tokens * first
