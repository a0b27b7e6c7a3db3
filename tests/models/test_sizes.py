"""Named sizes: the published parameter counts, and Hugging Face's module."""

import jax
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vitar_jax.models.qwen2_5_vl.sizes import SIZES
from vitar_jax.models.registry import abstract_model

BILLIONS = {"3b": "3.75", "7b": "8.29", "32b": "33.5", "72b": "73.4"}  # as the model pages round them


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
