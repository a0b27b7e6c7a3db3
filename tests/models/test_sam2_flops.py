"""The analytic counts of SAM 2 against torch's counter, which watches the products that Hugging Face's module makes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kit import tiny_sam2
from vitar_jax.models.flops import Products
from vitar_jax.models.sam2.config import HIERA_LARGE, Sam2Config
from vitar_jax.models.sam2.flops import decoder_products, encoder_products


def total(products: Products) -> int:
    return products.weights + products.attention


@pytest.mark.parametrize("masks", [1, tiny_sam2.MASKS])
@pytest.mark.parametrize("shape", tiny_sam2.SHAPES)
def test_counts_are_torchs(shape: str, masks: int) -> None:
    config = tiny_sam2.hf_config(tiny_sam2.SHAPES[shape])
    config._attn_implementation = "eager"  # torch does not count its fused attention on a CPU
    theirs, images = tiny_sam2.hf_model(config), tiny_sam2.IMAGES
    unused = 0  # products of every place's heads with each other, which Hugging Face's trunk makes before its attention

    def count(qkv: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        nonlocal unused
        unused += 2 * inputs[0][..., 0].numel() * heads[qkv] * qkv.out_features // 3  # type: ignore[operator]

    attentions = [block.attn for block in theirs.vision_encoder.backbone.blocks]
    heads = {attention.qkv: attention.num_attention_heads for attention in attentions}
    for qkv in heads:
        qkv.register_forward_hook(count)
    pixels, prompts = tiny_sam2.inputs()
    with FlopCounterMode(display=False) as counter:
        tiny_sam2.run_theirs(theirs, pixels, torch.tensor(prompts[:, :masks]))
    counted = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    ours = Sam2Config.from_hf(config.to_dict())
    assert total(encoder_products(ours, images=images)) == counted["Sam2VisionModel"] - unused
    places, width = (tiny_sam2.SIDE // 16) ** 2, tiny_sam2.WIDTH
    # Theirs also makes the mask of a single meaning, and repeats the first block's projections of the image for each mask.
    single = 2 * images * masks * 16 * places * width // 8
    repeated = 2 * images * (masks - 1) * 3 * places * width * width // 2
    expected = counted["Sam2MaskDecoder"] + counted["Conv2d"] - single - repeated
    assert total(decoder_products(ours, images=images, entries=images, masks=images * masks)) == expected


def test_published_sizes() -> None:
    """A program's own count has, beside products, the elements' operations: 1,869 and 3.9 GFLOP without sharing."""
    assert total(encoder_products(HIERA_LARGE, images=1)) / 1e12 == pytest.approx(1.869, rel=0.03)
    one, two = (total(decoder_products(HIERA_LARGE, images=0, entries=0, masks=masks)) for masks in (1, 2))
    assert two == 2 * one and one / 1e9 == pytest.approx(2.85, abs=0.01)
