"""Named sizes: the published parameter counts, and Hugging Face's module."""

import math

import jax
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vitar_jax.models.qwen2_5_vl.sizes import SIZES
from vitar_jax.models.registry import abstract_model
from vitar_jax.processing.positions import SizeClass, smallest_class

BILLIONS = {"3b": "3.75", "7b": "8.29", "32b": "33.5", "72b": "73.4"}  # as the model pages round them


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    config = SIZES[name]
    abstract = abstract_model(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract))
    published = BILLIONS[name.rpartition("_")[2]]
    assert f"{count / 1e9:.{len(published.partition('.')[2])}f}" == published
    with torch.device("meta"):
        theirs = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config.to_hf()))
    assert count == sum({id(p): p.numel() for p in theirs.parameters()}.values())


@pytest.mark.parametrize("name", SIZES)
def test_every_image_of_qwens_budget_fits_a_size_class(name: str) -> None:
    """16,384 tokens of any shape up to an aspect of 200, with less than half of the slots empty for square images."""
    layout, vision = SIZES[name].layout, SIZES[name].vision
    classes = [SizeClass(*one) for one in layout.size_classes]
    geometry = dict(window_size=layout.window_size, patch_size=vision.patch_size, merge_size=vision.spatial_merge_size)
    for rows in (1, 2, 5, 8, 9, 13, 64, 128):
        smallest_class((1, 2 * rows, 2 * min(16_384 // rows, 200 * rows)), classes, **geometry)
    for side in (8, 16, 32, 74, 128):  # 74 patches are 1,036 pixels
        windows = math.ceil(side * vision.patch_size / layout.window_size) ** 2
        assert classes[smallest_class((1, side, side), classes, **geometry)].windows <= 2 * windows
