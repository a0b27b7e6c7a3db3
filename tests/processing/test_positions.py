"""Index arrays against Hugging Face's Qwen2.5-VL, over random layouts."""

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from vitar_jax.errors import ImageError
from vitar_jax.processing.positions import (
    SizeClass,
    append_positions,
    arrange,
    fits,
    mrope_positions,
    smallest_class,
    window_layout,
)

IMAGE = 7
MERGE = 2
TOKENS = {"image_token_id": IMAGE, "merge_size": MERGE}
GEOMETRY = {"window_size": 112, "patch_size": 14, "merge_size": MERGE}
Piece = tuple[list[int], list[tuple[int, int, int]]]  # token ids, and grids of the images among them


@lru_cache
def hugging_face_model() -> Any:
    text = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE))


sides = st.integers(1, 20).map(lambda side: side * MERGE)
grids = st.tuples(st.just(1), sides, sides)
text = st.lists(st.integers(8, 31), max_size=12).map(lambda ids: (ids, []))
images = grids.map(lambda g: ([5] + [IMAGE] * (g[1] * g[2] // MERGE**2) + [6], [g]))
pieces = st.lists(text | images, min_size=1, max_size=6).filter(lambda ps: any(ids for ids, _ in ps))


def joined(parts: list[Piece]) -> Piece:
    return [token for ids, _ in parts for token in ids], [grid for _, grids in parts for grid in grids]


# Tokens


@given(parts=pieces)
@settings(max_examples=300, deadline=None)
def test_mrope_positions_equal_hugging_faces(parts: list[Piece]) -> None:
    token_ids, grid_list = joined(parts)
    input_ids = torch.tensor([token_ids])
    expected, delta = hugging_face_model().get_rope_index(
        input_ids, (input_ids == IMAGE).int(), torch.tensor(grid_list) if grid_list else None
    )
    position_ids, next_position = append_positions(0, token_ids, grid_list, **TOKENS)
    assert position_ids.dtype == np.int32
    assert np.array_equal(position_ids, expected[:, 0])
    # Generated tokens go on from here: Hugging Face's rope_deltas say the same.
    assert next_position == len(token_ids) + int(delta)


@given(parts=pieces, start=st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_appended_pieces_have_the_ids_of_the_whole(parts: list[Piece], start: int) -> None:
    whole, end = append_positions(start, *joined(parts), **TOKENS)
    appended, next_position = [], start
    for token_ids, grid_list in parts:
        ids, next_position = append_positions(next_position, token_ids, grid_list, **TOKENS)
        appended.append(ids)
    assert np.array_equal(np.concatenate(appended, 1), whole) and next_position == end
    if start == 0:
        assert np.array_equal(mrope_positions(*joined(parts), **TOKENS), whole)


def test_the_worked_example_of_the_docstring() -> None:
    position_ids, next_position = append_positions(0, [8, 9] + [IMAGE] * 6 + [10], [(1, 4, 6)], **TOKENS)
    assert position_ids.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert next_position == 6


def test_images_may_touch() -> None:
    apart = [append_positions(start, [IMAGE] * 4, [(1, 4, 4)], **TOKENS)[0] for start in (0, 2)]
    together = mrope_positions([IMAGE] * 8, [(1, 4, 4)] * 2, **TOKENS)
    assert np.array_equal(together, np.concatenate(apart, 1))


@pytest.mark.parametrize(
    ("token_ids", "grid_list", "words"),
    [
        ([8] + [IMAGE] * 3, [(1, 4, 4)], "3 vision tokens.*take 4"),
        ([IMAGE] * 5, [(1, 4, 4)], "5 vision tokens.*take 4"),
        ([IMAGE] * 4, [], "4 vision tokens.*take 0"),
        ([8, 9], [(1, 4, 4)], "0 vision tokens"),
        ([IMAGE] * 2 + [8] + [IMAGE] * 2, [(1, 4, 4)], "not in one piece"),
        ([IMAGE] * 3, [(1, 5, 3)], "merge_size 2"),
    ],
)
def test_image_tokens_must_be_those_of_the_grids(token_ids: list[int], grid_list: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mrope_positions(token_ids, grid_list, **TOKENS)


# Patches


geometries = [(112, 14, 2), (56, 14, 2), (64, 16, 2), (16, 4, 2), (24, 4, 3), (28, 14, 1)]


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), geometry=st.sampled_from(geometries))
@example(rows=1, columns=40, geometry=(112, 14, 2))
@example(rows=40, columns=1, geometry=(112, 14, 2))
@example(rows=8, columns=8, geometry=(112, 14, 2))
@example(rows=3, columns=3, geometry=(112, 14, 2))
@example(rows=1, columns=1, geometry=(112, 14, 2))
@settings(max_examples=300, deadline=None)
def test_windows_equal_hugging_faces(rows: int, columns: int, geometry: tuple[int, int, int]) -> None:
    window_size, patch_size, merge = geometry
    grid = (1, rows * merge, columns * merge)
    window_index, cu_seqlens = get_vision_window_index(torch.tensor([grid]), merge, window_size, patch_size)
    layout = window_layout(grid, window_size=window_size, patch_size=patch_size, merge_size=merge)
    unit = merge**2
    patches = torch.arange(rows * columns * unit).reshape(-1, unit)
    assert np.array_equal(layout.order, patches[window_index].flatten())
    assert np.array_equal(layout.window_lengths, cu_seqlens.diff())
    assert np.array_equal(layout.feature_slot, window_index.argsort())


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), spare=st.integers(0, 3), wide=st.booleans())
@settings(max_examples=200, deadline=None)
def test_arranged_patches_are_hugging_faces_in_padded_windows(rows: int, columns: int, spare: int, wide: bool) -> None:
    grid = (1, rows * MERGE, columns * MERGE)
    tokens = rows * columns
    lengths = window_layout(grid, **GEOMETRY).window_lengths
    size_class = SizeClass(len(lengths) + spare, 64 if wide else int(lengths.max()))
    patches = np.random.default_rng(0).normal(size=(tokens * 4, 5)).astype(np.float32)
    pixels, patch_positions, feature_slots = arrange(patches, grid, size_class, **GEOMETRY)
    assert pixels.shape == (size_class.slots, 5) and pixels.dtype == np.float32
    assert patch_positions.dtype == feature_slots.dtype == np.int32

    # Without the padding, what is left is Hugging Face's window order of patches and of rotary ids.
    window_index, cu_seqlens = get_vision_window_index(torch.tensor([grid]), MERGE, 112, 14)
    rotary_ids = get_vision_position_ids(torch.tensor([grid]), MERGE)
    taken = patch_positions[:, 0] >= 0
    assert np.array_equal(pixels[taken], patches.reshape(tokens, 4, 5)[window_index].reshape(-1, 5))
    assert np.array_equal(patch_positions[taken], rotary_ids.reshape(tokens, 4, 2)[window_index].flatten(0, 1))
    assert np.array_equal(taken, (patch_positions >= 0).all(1)) and not pixels[~taken].any()
    # Each window starts at its own multiple of window_patches and has no holes.
    expected = np.zeros((size_class.windows, size_class.window_patches), bool)
    for window, length in enumerate(cu_seqlens.diff().tolist()):
        expected[window, :length] = True
    assert np.array_equal(taken, expected.reshape(-1))
    # Feature k of the language model is made of the four patches at row k // columns, column k % columns.
    corners = patch_positions.reshape(-1, 4, 2)[feature_slots][:, 0]
    assert np.array_equal(corners, 2 * np.stack(np.divmod(np.arange(tokens), columns), 1))
    assert np.array_equal(pixels.reshape(-1, 20)[feature_slots], patches.reshape(-1, 20))


def test_size_classes() -> None:
    classes = [SizeClass(16, 64), SizeClass(1, 36), SizeClass(4, 64)]
    assert fits((1, 6, 6), SizeClass(1, 36), **GEOMETRY)
    assert not fits((1, 6, 8), SizeClass(1, 36), **GEOMETRY)  # 48 patches in one window
    assert not fits((1, 2, 10), SizeClass(1, 36), **GEOMETRY)  # 20 patches in two windows
    assert smallest_class((1, 6, 6), classes, **GEOMETRY) == 1
    assert smallest_class((1, 6, 8), classes, **GEOMETRY) == 2
    assert smallest_class((1, 16, 18), classes, **GEOMETRY) == 0
    with pytest.raises(ImageError, match=r"\(1, 16, 72\) needs 18 windows of 64 .*16 x 64, 1 x 36, 4 x 64"):
        smallest_class((1, 16, 72), classes, **GEOMETRY)


def test_what_does_not_fit_is_refused() -> None:
    patches = np.zeros((36, 3), np.float32)
    with pytest.raises(ValueError, match="does not fit"):
        arrange(patches, (1, 6, 6), SizeClass(1, 32), **GEOMETRY)
    with pytest.raises(ValueError, match="36 patches for an image of grid"):
        arrange(patches, (1, 6, 4), SizeClass(1, 36), **GEOMETRY)
    with pytest.raises(ValueError, match="multiple"):
        arrange(patches, (1, 6, 6), SizeClass(1, 38), **GEOMETRY)
    with pytest.raises(ValueError, match="merge_size 2"):
        window_layout((1, 5, 6), **GEOMETRY)
