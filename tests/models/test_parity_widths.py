"""Parity at the true widths of Qwen2.5-VL 3B and 7B, cut to few layers of each tower and a small vocabulary.

One model at a time, and of each only what the next step needs: at 7B a copy of the weights is 2.3 GB.
"""

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig

from tests.kit import parity, tiny
from tests.kit.images import noise
from tests.kit.parity import TOLERANCE, Case, relative_error
from vitar_jax.models.pretrained import load_pretrained, save_pretrained
from vitar_jax.processing.images import ImageProcessor
from vitar_jax.processing.packing import BatchShape, pack
from vitar_jax.processing.positions import SizeClass, VisionLayout
from vitar_jax.processing.processor import Processor

pytestmark = pytest.mark.slow

VOCAB = 4096
WINDOWS = VisionLayout(112, tokens_per_second=2)  # of 4 x 4 tokens
PROCESSOR = Processor(tiny.chat(), ImageProcessor(min_pixels=28 * 28), (SizeClass(2, 64),), WINDOWS)
TEXT = {
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
}


def hf_config(size: str, layers: int) -> Qwen2_5_VLConfig:
    vision = {
        "depth": 2,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": TEXT[size]["hidden_size"],
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    sizes = TEXT[size] | {"vocab_size": VOCAB, "num_hidden_layers": layers, "rope_parameters": rope}
    return tiny.hf_config(tie=size == "3B", vision=vision, **sizes)


def packed() -> tuple[Case, ...]:
    """Theirs has a row for each, padded on the right."""
    clip = tiny.clip
    return parity.make_cases(
        {
            "one image": [[noise(112, 84, seed=1), "Which?"]],
            "text after images": [[noise(84, 84, seed=2), "Now answer the question from this region."]],
            "an observation": [[noise(56, 56, seed=3), "Where?"], ["zoom"], [noise(84, 56, seed=4), "Now answer."]],
            "text only": [["Is the texture flat?"]],
            "a grid of broken windows": [[noise(140, 84, seed=5)]],
            "a strip 28 high": [[noise(168, 28, seed=6), "rows"]],
            "a strip 28 wide": [[noise(28, 168, seed=7), "columns"]],
            "a video": [[clip(3, 1, 5, seconds=0.75, seed=8), "Now answer."]],
        },
        PROCESSOR,
    )


def padded_left() -> tuple[Case, ...]:
    return parity.make_cases(
        {
            "left: several images": [[noise(84, 56, seed=9), "then", noise(140, 56, seed=10), "left"]],
            "left: text only": [["Is the texture flat or not?"]],
        },
        PROCESSOR,
    )


@dataclasses.dataclass(frozen=True)
class Compared:
    """Relative errors of logits by case and of gradients by parameter, and the smallest spread of a case's logits."""

    logits: dict[str, float]
    gradients: dict[str, float]
    spread: float


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("3B", 1), id="3B"),
        pytest.param(("3B", 2), id="3B, two layers", marks=pytest.mark.sweep),
        pytest.param(("7B", 2), id="7B", marks=pytest.mark.sweep),
    ],
)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    folder = tmp_path_factory.mktemp("widths")
    theirs = run_theirs(*request.param, folder)
    gc.collect()
    with jax.default_matmul_precision("highest"):
        ours = run_ours(folder)
    gc.collect()
    yield Compared(
        logits={name: relative_error(ours[name], theirs[name]) for name in theirs},
        gradients=gradient_errors(folder),
        spread=min(float(logits.std()) for logits in theirs.values()),
    )
    for path in folder.rglob("*.safetensors"):  # pytest would keep them
        path.unlink()


def run_theirs(size: str, layers: int, folder: Path) -> dict[str, np.ndarray]:
    """Logits of each case. Weights go to `folder`, gradients to a file there."""
    model = tiny.hf_model(hf_config(size, layers))
    model.save_pretrained(folder)
    logits = parity.run_theirs(model, packed(), "right", backward=True)
    logits |= parity.run_theirs(model, padded_left(), "left", backward=True)
    gradients = {tiny.published(name): parameter.grad for name, parameter in model.named_parameters()}
    save_file(gradients, folder / "theirs.safetensors")
    return logits


def run_ours(folder: Path) -> dict[str, np.ndarray]:
    """Logits of each case, from the weights in `folder`. Gradients go to a folder there."""
    images = sum(grid[0] for case in packed() for grid in case.example.grids)
    shape = BatchShape(1, 4, 48, images, PROCESSOR.size_classes[0], 200)
    together = pack([case.example for case in packed()], shape, PROCESSOR)
    assert together.segment_ids.max() >= 2  # rows are shared
    apart = parity.one_a_row(padded_left(), "left", tokens=48, using=PROCESSOR)
    batch = parity.beside([together, apart], PROCESSOR)
    cases = packed() + padded_left()
    where = parity.places(batch, cases)
    model = load_pretrained(folder)
    logits, gradient = parity.logits_and_gradient(model, batch, parity.batch_weights(batch, cases, VOCAB))
    del model
    save_pretrained(gradient, folder / "ours")
    return {name: np.asarray(logits)[place] for name, place in where.items()}


def gradient_errors(folder: Path) -> dict[str, float]:
    found = {}
    with safe_open(folder / "theirs.safetensors", "numpy") as theirs:
        for path in (folder / "ours").glob("*.safetensors"):
            with safe_open(path, "numpy") as ours:
                for name in ours.keys():
                    found[name] = relative_error(ours.get_tensor(name), theirs.get_tensor(name))
        assert found.keys() == set(theirs.keys())
    return found


def test_logits_equal_hugging_faces(compared: Compared) -> None:
    assert compared.spread >= 1
    assert {name: error for name, error in compared.logits.items() if not error <= TOLERANCE} == {}


def test_gradients_equal_hugging_faces(compared: Compared) -> None:
    assert {name: error for name, error in compared.gradients.items() if not error <= TOLERANCE} == {}
