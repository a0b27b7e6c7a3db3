"""SAM 2 against Hugging Face's module: maps, masks, gradients, and the effect of breaking each mechanism on purpose."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.kit import tiny_sam2
from tests.kit.tiny_sam2 import relative_error
from vitar_jax.models.layers import period
from vitar_jax.models.pretrained import leaf_paths
from vitar_jax.models.sa2va.model import Bridge
from vitar_jax.models.sam2.config import HIERA_LARGE, TrunkConfig
from vitar_jax.models.sam2.model import ImageMaps, Masks, Sam2
from vitar_jax.models.sam2.names import HF_NAMES
from vitar_jax.models.sam2.trunk import bicubic

TOLERANCE = 1e-5  # of ||ours - theirs|| / ||theirs||
OF_GRADIENTS = 1e-4
BROKEN = 100 * TOLERANCE
SHAPE = "windows divide"


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("shape", tiny_sam2.SHAPES)
def test_maps_and_masks_equal_hugging_faces(shape: str) -> None:
    (_, ours), expected = tiny_sam2.pretrained(shape), tiny_sam2.theirs(shape)
    pixels, prompts = tiny_sam2.inputs()
    maps = tiny_sam2.encode(ours, pixels)
    masks = tiny_sam2.decode(ours, maps, prompts)
    found = {name: getattr(maps, name) for name in ("fine", "middle", "embedding")} | vars(masks)
    errors = {name: relative_error(leaf, getattr(expected, name)) for name, leaf in found.items()}
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}
    best = expected.ious.argmax(-1)
    assert len(best.unique()) > 1 or shape != SHAPE
    taken = expected.logits.flatten(0, 1)[torch.arange(best.numel()), best.flatten()].reshape(masks.best().shape)
    assert relative_error(masks.best(), taken) <= TOLERANCE


@pytest.mark.slow
def test_images_and_masks_do_not_touch_each_other() -> None:
    """Images in another order, with their masks in another order, are the same."""
    _, ours = tiny_sam2.pretrained(SHAPE)
    pixels, prompts = tiny_sam2.inputs()
    forward = tiny_sam2.decode(ours, tiny_sam2.encode(ours, pixels), prompts).logits
    backward = tiny_sam2.decode(ours, tiny_sam2.encode(ours, pixels[:, ::-1]), prompts[::-1, ::-1]).logits
    np.testing.assert_allclose(backward[::-1, ::-1], forward, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradients_of_bridge_and_decoder_equal_hugging_faces() -> None:
    """Through the best masks alone, from given maps, also of the decoder's projections of the large maps."""
    theirs, ours = tiny_sam2.pretrained(SHAPE)
    rng = np.random.default_rng(1)
    states = rng.normal(size=(tiny_sam2.IMAGES, tiny_sam2.MASKS, 12)).astype(np.float32)
    bridge = Bridge(12, tiny_sam2.WIDTH, key=jax.random.key(0), std=None)
    sides = (16, 8, 4)
    levels = [rng.normal(size=(tiny_sam2.IMAGES, side, side, tiny_sam2.WIDTH)).astype(np.float32) for side in sides]
    weight = rng.normal(size=(tiny_sam2.IMAGES, tiny_sam2.MASKS, 16, 16)).astype(np.float32)

    @jax.jit
    def ours_of(decoder: Any, bridge: Bridge) -> jax.Array:
        model = jax.tree.map(lambda leaf: leaf, ours)
        model.mask_decoder = decoder
        maps = ImageMaps(*decoder.project(tuple(map(jnp.asarray, levels))))
        return jnp.sum(model.decode(maps, bridge(jnp.asarray(states))).best() * weight)

    loss, (of_decoder, of_bridge) = jax.value_and_grad(ours_of, argnums=(0, 1))(ours.mask_decoder, bridge)

    fc1, fc2 = torch.nn.Linear(12, 12), torch.nn.Linear(12, tiny_sam2.WIDTH)
    with torch.no_grad():
        for linear, mine in ((fc1, bridge.fc1), (fc2, bridge.fc2)):
            linear.weight.copy_(torch.tensor(np.asarray(mine.kernel[...]).T))
            linear.bias.copy_(torch.tensor(np.asarray(mine.bias[...])))
    prompts = fc2(torch.relu(fc1(torch.tensor(states))))
    expected = tiny_sam2.decode_theirs(theirs, [torch.tensor(level).permute(0, 3, 1, 2) for level in levels], prompts)
    best = expected.ious.argmax(-1)[..., None, None, None].expand(-1, -1, 1, 16, 16)
    torch_loss = (expected.logits.gather(2, best)[:, :, 0] * torch.tensor(weight)).sum()
    theirs.zero_grad()
    torch_loss.backward()

    assert float(loss) == pytest.approx(torch_loss.item(), rel=1e-4)
    named = dict(theirs.mask_decoder.named_parameters())
    errors = {"bridge": relative_error(of_bridge.fc1.kernel[...].T, fc1.weight.grad)}
    errors["bridge, last"] = relative_error(of_bridge.fc2.kernel[...].T, fc2.weight.grad)
    untouched = set()
    for path, leaf in leaf_paths(of_decoder):
        for layer, name in enumerate(HF_NAMES.published(f"mask_decoder/{path}", leaf.shape[0])):
            gradient = leaf[layer] if HF_NAMES.is_stacked(f"mask_decoder/{path}") else leaf
            expected_gradient = named[name.removeprefix("mask_decoder.")].grad
            if expected_gradient is None or not expected_gradient.any():
                assert not np.any(gradient), name
                untouched.add(name.split(".")[1])
                continue
            gradient = gradient.T if path.endswith("/kernel") else gradient
            errors[name] = relative_error(np.reshape(gradient, expected_gradient.shape), expected_gradient)
    # The heads that choose, and the selector of the single mask, learn nothing.
    assert untouched >= {"iou_prediction_head", "pred_obj_score_head", "output_hypernetworks_mlps"}
    of_biases = {name for name in errors if name.endswith("k_proj.bias")}  # 0 in exact arithmetic
    assert {name: error for name, error in errors.items() if error > OF_GRADIENTS and name not in of_biases} == {}
    assert len(errors) > 100


# Mechanisms broken on purpose

BREAKS: dict[str, Callable[[str], bool]] = {
    "no embedding of missing memories": lambda path: path == "no_memory_embedding",
    "no padding tokens": lambda path: path.startswith("prompt_encoder/not_a_point_embed"),
    "no mask prompt": lambda path: path.startswith("prompt_encoder/no_mask_embed"),
    "no fine map": lambda path: path.startswith("mask_decoder/conv_s0"),
    "no middle map": lambda path: path.startswith("mask_decoder/conv_s1"),
    "no places in the image": lambda path: path.startswith("shared_image_embedding"),
    "no position table": lambda path: path.endswith("pos_embed"),
    "no positions in windows": lambda path: path.endswith("pos_embed_window"),
    "one level of the pyramid": lambda path: path.startswith("vision_encoder/neck/convs/0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_mechanism_shows(name: str) -> None:
    _, ours = tiny_sam2.pretrained(SHAPE)
    pixels, prompts = tiny_sam2.inputs()

    def zeroed(path: Any, leaf: jax.Array) -> jax.Array:
        path = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        return leaf * (not BREAKS[name](path))

    broken = jax.tree_util.tree_map_with_path(zeroed, ours)
    masks = tiny_sam2.decode(broken, tiny_sam2.encode(broken, pixels), prompts)
    assert relative_error(masks.logits, tiny_sam2.theirs(SHAPE).logits) >= BROKEN


@pytest.mark.parametrize("size, length", [(256, 7), (16, 7), (40, 5), (7, 7), (5, 14)])
def test_tables_are_resized_as_torch_does(size: int, length: int) -> None:
    table = np.random.default_rng(0).normal(size=(1, 3, length, length)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(table), size=(size, size), mode="bicubic")
    matrix = bicubic(size, length)
    assert relative_error(np.einsum("rh,cw,ndhw->ndrc", matrix, matrix, table), expected) <= 1e-6
    if size > length:
        other = jax.image.resize(table, (1, 3, size, size), "bicubic")
        assert relative_error(other, expected) >= 1e-2


@pytest.mark.slow
def test_positions_are_hugging_faces() -> None:
    theirs, ours = tiny_sam2.pretrained("windows do not divide")
    with torch.no_grad():
        expected = theirs.vision_encoder.backbone._get_pos_embed((16, 24))[0]
    assert relative_error(ours.vision_encoder.backbone.positions(16, 24), expected) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("approximate", [False, True])
def test_gelus_are_exact(approximate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trunk and in the upscaling. The tanh approximation moves masks by little more than the tolerance."""
    theirs, ours = tiny_sam2.pretrained(SHAPE)
    if approximate:
        gelu = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=not approximate))
    block = jax.tree.map(lambda leaf: leaf[0], ours.vision_encoder.backbone.runs[0])
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.vision_encoder.backbone.blocks[0].mlp(torch.tensor(x))
    error = relative_error(block.mlp(jnp.asarray(x)), expected)
    assert (error > 1e-5) if approximate else (error <= 1e-6)

    decoder = ours.mask_decoder
    maps = np.random.default_rng(1).normal(size=(1, 1, 4, 4, tiny_sam2.WIDTH)).astype(np.float32)
    with torch.no_grad():
        their = theirs.mask_decoder
        grown = their.upscale_conv1(torch.tensor(maps[0]).permute(0, 3, 1, 2))
        grown = their.activation(their.upscale_layer_norm(grown))
        expected = their.activation(their.upscale_conv2(grown)).permute(0, 2, 3, 1)[None]
    fine, middle = jnp.zeros((1, 1, 16, 16, 4)), jnp.zeros((1, 1, 8, 8, 8))
    error = relative_error(decoder.upscale(jnp.asarray(maps), fine, middle), expected)
    assert (error > 1e-5) if approximate else (error <= 1e-6)


def test_only_the_best_mask_gets_a_gradient() -> None:
    ious = jnp.array([[[0.2, 0.9, 0.5], [0.7, 0.1, 0.3]]])
    logits = jnp.arange(24.0).reshape(1, 2, 3, 2, 2)
    gradient = jax.grad(lambda logits: Masks(logits, ious, ious[..., 0]).best().sum())(logits)
    np.testing.assert_array_equal(gradient[0, :, :, 0, 0], [[0, 1, 0], [1, 0, 0]])


# The trunk's blocks are scanned


def test_blocks_are_scanned_in_few_runs() -> None:
    """The 48 blocks of the largest SAM 2 compile as 17."""
    runs = HIERA_LARGE.trunk.runs
    assert [(run.first, len(run.windows), period(run.windows)) for run in runs] == [
        *[(0, 2, 1), (2, 1, 1), (3, 5, 1), (8, 1, 1), (9, 5, 1), (14, 30, 10), (44, 1, 1), (45, 3, 1)]
    ]
    theirs = [8, 8, 8, *[4] * 6, *[16] * 35, 16, *[8] * 3]  # the first block of a stage has the windows of the one before
    for block in (23, 33, 43):
        theirs[block] = 0
    assert [window for run in runs for window in run.windows] == theirs
    assert [run.first for run in runs if run.pools] == [2, 8, 44]


@pytest.mark.parametrize(
    "blocks, globals_, lengths",
    [
        ((1, 2, 7, 2), (5, 7, 9), [1, 1, 1, 1, 6, 1, 1]),  # sam2-hiera-tiny
        ((1, 2, 11, 2), (7, 10, 13), [1, 1, 1, 1, 1, 9, 1, 1]),  # small
        ((2, 3, 16, 3), (12, 16, 20), [2, 1, 2, 1, 3, 12, 1, 2]),  # base-plus
        ((1, 1, 1, 1), (), [1, 1, 1, 1]),
    ],
)
def test_other_sizes_have_runs_too(blocks: tuple[int, ...], globals_: tuple[int, ...], lengths: list[int]) -> None:
    config = TrunkConfig((8, 16, 32, 64), (1, 1, 1, 1), blocks, (8, 4, 14, 7), globals_)
    assert [len(run.windows) for run in config.runs] == lengths
    assert [run.first for run in config.runs] == list(np.cumsum([0, *lengths[:-1]]))


@pytest.mark.slow
def test_a_trace_has_the_blocks_of_its_runs() -> None:
    """Each block has one exact GELU, which is one `erfc`."""
    trunk = dataclasses.replace(HIERA_LARGE.trunk, embed_dim_per_stage=(8, 16, 24, 32), num_attention_heads_per_stage=(1,) * 4)
    config = dataclasses.replace(HIERA_LARGE, trunk=trunk, image_size=64)
    model = jax.eval_shape(lambda: Sam2(config, key=jax.random.key(0)))
    pixels = jax.ShapeDtypeStruct((1, 1, 64, 64, 3), jnp.uint8)
    assert str(jax.make_jaxpr(lambda model, pixels: model.encode(pixels))(model, pixels)).count(" erfc ") == 17
