"""Resizing against torch's, bit for bit, and against PIL's to a level or two."""

import numpy as np
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.kit.images import noise
from vitar_jax.processing.resample import resize_bicubic

SIDES = st.integers(1, 300)


@given(height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES, mode=st.sampled_from(["L", "RGB"]))
@example(height=20, width=30, new_height=20, new_width=30, mode="RGB")
@example(height=20, width=30, new_height=20, new_width=60, mode="RGB")
@example(height=1500, width=2000, new_height=84, new_width=84, mode="RGB")  # weights of the longest fraction
@settings(max_examples=150)
def test_bits_are_torchs(height: int, width: int, new_height: int, new_width: int, mode: str) -> None:
    assume((new_height, new_width) != (1, 1))  # torch fails an assertion of its own there
    image = noise(width, height, mode, extremes=True)
    pixels = np.atleast_3d(np.asarray(image))
    ours = resize_bicubic(pixels, new_height, new_width)

    batch = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    theirs = torch.nn.functional.interpolate(batch, (new_height, new_width), mode="bicubic", antialias=True)
    assert ours.dtype == np.uint8 and np.array_equal(ours, theirs[0].permute(1, 2, 0).numpy())

    across = image.resize((new_width, height), Image.Resampling.BICUBIC)  # in the same order
    pils = np.atleast_3d(np.asarray(across.resize((new_width, new_height), Image.Resampling.BICUBIC)))
    assert np.abs(ours.astype(int) - pils.astype(int)).max() <= 2
