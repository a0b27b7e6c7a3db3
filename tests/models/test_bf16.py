"""The model in bf16: no further from the exact logits than Hugging Face's module in bf16 is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.kit import parity, tiny
from tests.kit.images import noise
from vitar_jax.models.pretrained import load_pretrained
from vitar_jax.processing.packing import BatchShape, pack

PROCESSOR = tiny.processor(12)
NO_WORSE = 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.pretrained()[0].save_pretrained(path)
    return path


@pytest.mark.slow
def test_bf16_logits_are_as_near_as_hugging_faces(folder: Path) -> None:
    cases = parity.make_cases(
        {
            "text": [["Where is the lesion and in which region of it? " * 4]],
            "an image": [[noise(112, 84), "Which texture is it?"]],
            "a video": [[tiny.clip(3, 2, 3, seconds=0.75), "Now answer the question from this region."]],
        },
        PROCESSOR,
    )
    exact = parity.run_theirs(tiny.pretrained()[0], cases)
    # Read anew: `.to(torch.bfloat16)` would round the rotary frequencies too.
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    rounded = parity.run_theirs(theirs.eval(), cases)

    batch = pack([case.example for case in cases], BatchShape(1, 2, 100, 4, PROCESSOR.size_classes[0], 200), PROCESSOR)
    logits = np.asarray(parity.forward(load_pretrained(folder, dtype="bfloat16"), batch), np.float32)
    for name, place in parity.places(batch, cases).items():
        ours = parity.relative_error(logits[place], exact[name])
        reference = parity.relative_error(rounded[name], exact[name])
        assert 0 < ours <= NO_WORSE * reference, (name, ours, reference)
