"""Qwen3-VL against Hugging Face's module: logits, gradients, and the effect of breaking each mechanism on purpose."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from tests.kit import parity, tiny_qwen3
from tests.kit.images import noise
from tests.kit.parity import BROKEN, Comparison
from vitar_jax.models.decoder import inject
from vitar_jax.models.qwen3_vl.vision import PositionTable
from vitar_jax.models.rope import Rotary, interleaved_mrope, mrope
from vitar_jax.processing.packing import BatchShape, pack

PROCESSOR = tiny_qwen3.processor()
CLASS = PROCESSOR.size_classes[0]
# (width, height): 4 x 3, 2 x 2, 3 x 5 and 7 x 3 tokens.
WIDE, SQUARE, ODD, LONG = (128, 96), (64, 64), (96, 160), (224, 96)


def padded(side: str, seed: int) -> dict[str, parity.Conversation]:
    return {
        f"{side}: two images": [[noise(*ODD, seed=seed), "then", noise(*SQUARE, seed=seed + 1), side]],
        f"{side}: text": [["Is the texture flat?", side]],
        f"{side}: one image": [[noise(*WIDE, seed=seed + 3), side]],
    }


COMPARISON = Comparison(
    tiny_qwen3,
    PROCESSOR,
    BatchShape(1, 4, 150, 16, CLASS, 600),
    {
        "text only": [["Where is the lesion and in which region of it?"]],
        "one image": [[noise(*WIDE, seed=1), "Which texture is it?"]],
        "several images": [[noise(*SQUARE, seed=2), "left", noise(*ODD, seed=3), noise(*WIDE, seed=4), "Look twice."]],
        "text after images": [[noise(*LONG, seed=5), "Now answer the question from this region. " * 4]],
        "an observation": [[noise(*WIDE, seed=6), "Where?"], ["zoom"], [noise(*ODD, seed=7), "Now answer."]],
        "one token high": [[noise(192, 32, seed=9), "rows"]],
        "one token wide": [[noise(32, 192, seed=10), "columns"]],
        "short": [["A"]],
        **padded("left", 20),
        **padded("right", 30),
    },
)


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("tie", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
def test_logits_equal_hugging_faces(tie: bool) -> None:
    batch = COMPARISON.batch
    assert batch.segment_ids.max() >= 2  # rows are shared
    assert (batch.segment_ids[..., 0] == 0).any() and (batch.segment_ids[..., -1] == 0).any()  # and padded
    assert min(theirs.std() for theirs in COMPARISON.references(tie)[0].values()) >= 1
    assert parity.wrong(COMPARISON.errors(batch, tie=tie)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "tie, remat",
    [
        pytest.param(False, "none", id="untied"),
        pytest.param(True, "layer", id="tied"),
        pytest.param(False, "dots", id="dots", marks=pytest.mark.sweep),
        pytest.param(False, "attention", id="attention", marks=pytest.mark.sweep),
    ],
)
def test_gradients_equal_hugging_faces(tie: bool, remat: str, tmp_path: Path) -> None:
    assert parity.wrong(COMPARISON.gradient_errors(tmp_path, tie=tie, remat=remat)) == {}


# Mechanisms broken on purpose


def without(*paths: str) -> Callable[[Any, pytest.MonkeyPatch], Any]:
    """Sets weights to zero."""

    def break_it(model: Any, patch: pytest.MonkeyPatch) -> Any:
        def zeroed(path: Any, leaf: jax.Array) -> jax.Array:
            return leaf * (not jax.tree_util.keystr(path, simple=True, separator="/").startswith(paths))

        broken = jax.tree_util.tree_map_with_path(zeroed, model)
        assert not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(broken), jax.tree.leaves(model), strict=True))
        return broken

    return break_it


def replaced(name: str, other: Callable[..., Any]) -> Callable[[Any, pytest.MonkeyPatch], Any]:
    """Replaces a function of the package."""

    def break_it(model: Any, patch: pytest.MonkeyPatch) -> Any:
        patch.setattr(name, other)
        return model

    return break_it


def without_norms(model: Any, patch: pytest.MonkeyPatch) -> Any:
    broken = jax.tree.map(lambda leaf: leaf, model)
    broken.model.layers.self_attn.q_norm = broken.model.layers.self_attn.k_norm = None
    return broken


def a_layer_late(x: jax.Array, injections: Sequence[jax.Array], number: jax.Array) -> jax.Array:
    return inject(x, [jnp.zeros_like(x), *injections], number)


def at_half_pixels(table: PositionTable, positions: jax.Array) -> jax.Array:
    """Maps the edges of the image to the edges of the table, as image resizing usually does."""
    sides = jnp.max(positions, axis=1, keepdims=True) + 1
    place = jnp.clip((positions + 0.5) * table.side / sides - 0.5, 0, table.side - 1)
    rows, columns = (jax.nn.relu(1 - jnp.abs(place[..., axis, None] - jnp.arange(table.side))) for axis in (0, 1))
    return jnp.einsum("npy,npx,yxd->npd", rows, columns, table.weight[...].reshape(table.side, table.side, -1))


def no_rotation(positions: jax.Array, head_dim: int, theta: float) -> Rotary:
    shape = (*positions.shape[:-1], head_dim // 2)
    return jnp.ones(shape), jnp.zeros(shape)


BREAKS: dict[str, tuple[Callable[[Any, pytest.MonkeyPatch], Any], str]] = {
    "no DeepStack": (
        without("visual/deepstack_merger_list/linear_fc2/kernel", "visual/deepstack_merger_list/linear_fc2/bias"),
        "one image",
    ),
    "DeepStack a layer late": (replaced("vitar_jax.models.decoder.inject", a_layer_late), "one image"),
    "no learned positions": (without("visual/pos_embed/weight"), "one image"),
    "positions at half pixels": (
        replaced("vitar_jax.models.qwen3_vl.vision.PositionTable.__call__", at_half_pixels),
        "one image",
    ),
    "no rotation in the tower": (replaced("vitar_jax.models.qwen3_vl.vision.vision_rope", no_rotation), "one image"),
    "no norms of queries and keys": (without_norms, "text only"),
    "rotary axes in runs": (replaced("vitar_jax.models.qwen3_vl.config.interleaved_mrope", mrope), "several images"),
    "no bias of patches": (without("visual/patch_embed/bias"), "one image"),
}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clears compiled programs before and after a test that replaces one of the model's functions."""
    parity.forward.clear_cache()
    yield
    parity.forward.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_mechanism_shows(name: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, suffering = BREAKS[name]
    model = break_it(tiny_qwen3.pretrained()[1], monkeypatch)
    [case] = [case for case in COMPARISON.cases if case.name == suffering]
    batch = pack([case.example], BatchShape(1, 1, 150, 3, CLASS, 150), PROCESSOR)
    found = COMPARISON.errors(batch, where=parity.places(batch, [case]), model=model)
    assert found[suffering] >= BROKEN


def test_a_case_by_itself_is_right() -> None:
    """What `test_a_broken_mechanism_shows` runs, whole."""
    for name in {suffering for _, suffering in BREAKS.values()}:
        [case] = [case for case in COMPARISON.cases if case.name == name]
        batch = pack([case.example], BatchShape(1, 1, 150, 3, CLASS, 150), PROCESSOR)
        assert parity.wrong(COMPARISON.errors(batch, where=parity.places(batch, [case]))) == {}


@pytest.mark.slow
@pytest.mark.parametrize("approximate", [False, True])
def test_blocks_and_mergers_have_gelus_of_their_own(approximate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tanh approximation in blocks, the exact one in mergers. Confused, they move logits by less than the tolerance."""
    theirs, ours = tiny_qwen3.pretrained()
    tower, visual = theirs.model.visual, ours.visual
    x = np.random.default_rng(0).normal(size=(1, 8, 32)).astype(np.float32)
    block = jax.tree.map(lambda leaf: leaf[0], visual.blocks)
    parts = {
        "mlp": (block.mlp, tower.blocks[0].mlp),
        "merger": (visual.merger, tower.merger),
        "inner merger": (jax.tree.map(lambda leaf: leaf[1], visual.deepstack_merger_list), tower.deepstack_merger_list[1]),
    }
    if approximate:
        gelu = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=not approximate))
    for part, (mine, their) in parts.items():
        with torch.no_grad():
            expected = their(torch.tensor(x[0])).numpy()
        error = parity.relative_error(np.asarray(mine(jnp.asarray(x))).reshape(expected.shape), expected)
        assert (error > 1e-5) if approximate else (error <= 1e-6), (part, error)


def test_angles_are_hugging_faces_with_the_published_sections() -> None:
    config = tiny_qwen3.hf_config(
        head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    )
    positions = np.random.default_rng(0).integers(0, 5000, (3, 2, 7))
    theirs = Qwen3VLTextRotaryEmbedding(config.text_config)(torch.zeros(1), torch.tensor(positions))
    ours = interleaved_mrope(np.moveaxis(positions, 0, 1), 128, 5e6, (24, 20, 20))
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected.numpy()[..., :64], atol=1e-3)
