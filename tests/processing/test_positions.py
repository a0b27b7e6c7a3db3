"""Index arrays against Hugging Face's Qwen2.5-VL, over random layouts."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from tests.kit.positions import qwens_positions
from vitar_jax.errors import ImageError
from vitar_jax.processing.positions import (
    Grid,
    SizeClass,
    append_positions,
    arrange,
    fits,
    slices,
    smallest_class,
    window_layout,
)

IMAGE, VIDEO = 7, 4
MERGE = 2
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "merge_size": MERGE, "tokens_per_second": 2}
GEOMETRY = {"window_size": 112, "patch_size": 14, "merge_size": MERGE}


class Piece(NamedTuple):
    """A stretch of a sequence. `seconds` has one entry for each of `grids`, 0 for an image."""

    token_ids: list[int]
    grids: list[Grid]
    seconds: list[float]


@lru_cache
def hugging_face_model(tokens_per_second: int) -> Any:
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
    vision["tokens_per_second"] = tokens_per_second
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    return Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def hugging_faces(rows: list[Piece], speed: int, side: str | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Position ids of each row and its rope delta. `side` pads the rows to one length there, under an attention mask."""
    longest = max(len(row.token_ids) for row in rows)
    input_ids = np.full((len(rows), longest), IMAGE)  # padding of which the mask alone tells
    attended = np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):
        count = len(row.token_ids)
        place = slice(longest - count, None) if side == "left" else slice(count)
        input_ids[i, place], attended[i, place] = row.token_ids, True
    seen = [pair for row in rows for pair in zip(row.grids, row.seconds, strict=True)]
    position_ids, deltas = hugging_face_model(speed).get_rope_index(
        torch.tensor(input_ids),
        torch.tensor((input_ids == IMAGE) + 2 * (input_ids == VIDEO)),
        image_grid_thw=torch.tensor([grid for grid, seconds in seen if not seconds]),
        video_grid_thw=torch.tensor([grid for grid, seconds in seen if seconds]),
        second_per_grid_ts=torch.tensor([seconds for _, seconds in seen if seconds]),
        attention_mask=torch.tensor(attended) if side else None,
    )
    return [position_ids[:, i, attended[i]].numpy() for i in range(len(rows))], deltas[:, 0].numpy()


def ours(start: int, piece: Piece, speed: int = 2) -> tuple[np.ndarray, int]:
    tokens = TOKENS | {"tokens_per_second": speed}
    return append_positions(start, piece.token_ids, piece.grids, seconds_per_grid=piece.seconds, **tokens)


def picture(grid: Grid, seconds: float = 0.0) -> Piece:
    count = grid[0] * grid[1] * grid[2] // MERGE**2
    return Piece([5, *[VIDEO if seconds else IMAGE] * count, 6], [grid], [seconds])


def joined(parts: list[Piece]) -> Piece:
    return Piece(*([item for part in parts for item in part[field]] for field in range(3)))


sides = st.integers(1, 9).map(lambda side: side * MERGE)
text = st.lists(st.integers(8, 31), max_size=12).map(lambda ids: Piece(ids, [], []))
images = st.tuples(st.just(1), sides, sides).map(picture)
seconds = st.sampled_from([0.5, 1.0, 2.0, 1 / 24, 2 / 3]) | st.floats(0.01, 20)
videos = st.builds(picture, st.tuples(st.integers(1, 9), sides, sides), seconds)
pieces = st.lists(text | images | videos, min_size=1, max_size=6).filter(lambda parts: any(p.token_ids for p in parts))
speeds = st.sampled_from([1, 2, 3, 25])


# Tokens


def check_positions(parts: list[Piece], speed: int) -> None:
    whole = joined([*parts, Piece([8], [], [])])  # one more token of text stands at the next position
    position_ids, next_position = ours(0, joined(parts), speed)
    assert position_ids.dtype == np.int32
    expected = qwens_positions(*whole, pads=(IMAGE, VIDEO), speed=speed)
    assert np.array_equal(position_ids, expected[:, :-1])
    assert next_position == expected[0, -1]
    [theirs], _ = hugging_faces([whole], speed)
    agreed = slice(first_video(whole))
    assert np.array_equal(expected[:, agreed], theirs[:, agreed])


def first_video(piece: Piece) -> int:
    """Number of tokens up to the end of the first video, after which transformers 5 has other ids than Qwen."""
    grids = [grid for grid, seconds in zip(piece.grids, piece.seconds, strict=True) if seconds]
    return piece.token_ids.index(VIDEO) + math.prod(grids[0]) // MERGE**2 if grids else len(piece.token_ids)


def check_rows(rows: list[list[Piece]], speed: int, side: str) -> None:
    """Rows of other images than each other's, padded on one side."""
    wholes = [joined(parts) for parts in rows]
    expected, deltas = hugging_faces(wholes, speed, side)
    for whole, theirs, delta in zip(wholes, expected, deltas, strict=True):
        position_ids, next_position = ours(0, whole, speed)
        agreed = slice(first_video(whole))
        assert np.array_equal(position_ids[:, agreed], theirs[:, agreed])
        if not any(whole.seconds):
            assert next_position == len(whole.token_ids) + delta  # where Hugging Face goes on generating


some, many = settings(max_examples=200), settings(max_examples=2000)
whole_texts = given(parts=pieces, speed=speeds)
padded_rows = given(rows=st.lists(pieces, min_size=2, max_size=4), speed=speeds, side=st.sampled_from(["left", "right"]))
test_some_positions_equal_hugging_faces = pytest.mark.slow(some(whole_texts(check_positions)))
test_some_padded_rows_have_hugging_faces_ids = pytest.mark.slow(some(padded_rows(check_rows)))
test_many_positions_equal_hugging_faces = pytest.mark.sweep(many(whole_texts(check_positions)))
test_many_padded_rows_have_hugging_faces_ids = pytest.mark.sweep(many(padded_rows(check_rows)))


@given(parts=pieces, start=st.integers(0, 1000))
@settings(max_examples=300)
def test_appended_pieces_have_the_ids_of_the_whole(parts: list[Piece], start: int) -> None:
    whole, end = ours(start, joined(parts))
    appended, next_position = [], start
    for piece in parts:
        ids, next_position = ours(next_position, piece)
        appended.append(ids)
    assert np.array_equal(np.concatenate(appended, 1), whole) and next_position == end
    if start == 0:
        token_ids, grids, seconds = joined(parts)
        assert np.array_equal(append_positions(0, token_ids, grids, seconds_per_grid=seconds, **TOKENS)[0], whole)


def test_the_worked_examples_of_the_docstring() -> None:
    position_ids, next_position = append_positions(0, [8, 9] + [IMAGE] * 6 + [10], [(1, 4, 6)], **TOKENS)
    assert position_ids.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert next_position == 6
    position_ids, next_position = append_positions(0, [8] + [VIDEO] * 6 + [9], [(3, 2, 4)], **TOKENS)
    assert position_ids.tolist() == [
        [0, 1, 1, 3, 3, 5, 5, 6],
        [0, 1, 1, 1, 1, 1, 1, 6],
        [0, 1, 2, 1, 2, 1, 2, 6],
    ]
    assert next_position == 7


def test_the_example_of_qwens_docstring() -> None:
    """Three slices of 2 x 2 tokens, two seconds apart at 25 tokens a second; then five tokens of text."""
    parts = [[VIDEO] * 12 + [8] * 5, [(3, 4, 4)]]
    position_ids, next_position = append_positions(0, *parts, seconds_per_grid=[2.0], **TOKENS | {"tokens_per_second": 25})
    assert position_ids.tolist() == [
        [0] * 4 + [50] * 4 + [100] * 4 + [101, 102, 103, 104, 105],
        [0, 0, 1, 1] * 3 + [101, 102, 103, 104, 105],
        [0, 1, 0, 1] * 3 + [101, 102, 103, 104, 105],
    ]
    assert next_position == 106


@pytest.mark.parametrize("second", [0.0, 1.0], ids=["an image", "a video"])
def test_a_second_picture_starts_after_the_largest_position_of_a_video(second: float) -> None:
    clip, other = picture((3, 4, 4), 1.0), picture((1, 4, 4), second)
    whole = joined([Piece([1, 2], [], []), clip, other, Piece([8], [], [])])
    position_ids, _ = ours(0, whole)
    # The video takes 3 to 7; its end and the next start are 8 and 9, so the second picture starts at 10.
    assert position_ids[:, 15:22].tolist() == [
        [8, 9, 10, 10, 10, 10, 12],
        [8, 9, 10, 10, 11, 11, 12],
        [8, 9, 10, 11, 10, 11, 12],
    ]


def test_images_and_videos_may_touch() -> None:
    apart = [
        append_positions(start, [token] * 4, [(1, 4, 4)], **TOKENS)[0] for start, token in [(0, IMAGE), (2, IMAGE), (4, VIDEO)]
    ]
    together, _ = append_positions(0, [IMAGE] * 8 + [VIDEO] * 4, [(1, 4, 4)] * 3, **TOKENS)
    assert np.array_equal(together, np.concatenate(apart, 1))


@pytest.mark.parametrize(
    ("token_ids", "grid_list", "words"),
    [
        ([8] + [IMAGE] * 3, [(1, 4, 4)], "3 vision tokens.*take 4"),
        ([VIDEO] * 5, [(1, 4, 4)], "5 vision tokens.*take 4"),
        ([IMAGE] * 4, [], "4 vision tokens.*take 0"),
        ([8, 9], [(1, 4, 4)], "0 vision tokens"),
        ([IMAGE] * 2 + [8] + [IMAGE] * 2, [(1, 4, 4)], "not contiguous"),
        ([IMAGE] * 2 + [VIDEO] * 2, [(1, 4, 4)], "not contiguous"),
        ([IMAGE] * 3, [(1, 5, 3)], "merge_size 2"),
    ],
)
def test_vision_tokens_must_be_those_of_the_grids(token_ids: list[int], grid_list: list[Grid], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        append_positions(0, token_ids, grid_list, **TOKENS)


def test_every_grid_needs_its_seconds() -> None:
    with pytest.raises(ValueError):
        append_positions(0, [VIDEO] * 8, [(2, 4, 4)], seconds_per_grid=[1.0, 1.0], **TOKENS)


# Patches


geometries = [(112, 14, 2), (56, 14, 2), (64, 16, 2), (16, 4, 2), (24, 4, 3), (28, 14, 1)]


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), geometry=st.sampled_from(geometries))
@example(rows=1, columns=40, geometry=(112, 14, 2))
@example(rows=40, columns=1, geometry=(112, 14, 2))
@example(rows=8, columns=8, geometry=(112, 14, 2))
@example(rows=3, columns=3, geometry=(112, 14, 2))
@example(rows=1, columns=1, geometry=(112, 14, 2))
@settings(max_examples=300)
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
@settings(max_examples=200)
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


@given(steps=st.integers(1, 5), rows=st.integers(1, 9), columns=st.integers(1, 9))
@settings(max_examples=100)
def test_the_slices_of_a_video_are_images_to_the_tower(steps: int, rows: int, columns: int) -> None:
    grid = (steps, rows * MERGE, columns * MERGE)
    patches = np.random.default_rng(0).normal(size=(grid[0] * grid[1] * grid[2], 5)).astype(np.float32)
    window_index, cu_seqlens = get_vision_window_index(torch.tensor([grid]), MERGE, 112, 14)
    found, lengths = [], []
    for part, part_grid in slices(patches, grid):
        layout = window_layout(part_grid, **GEOMETRY)
        found.append(part[layout.order])
        lengths.append(layout.window_lengths)
    assert np.array_equal(np.concatenate(found), patches.reshape(-1, 4, 5)[window_index].reshape(-1, 5))
    assert np.array_equal(np.concatenate(lengths), cu_seqlens.diff())
    # Full attention stays within a slice too.
    assert [sum(part) for part in lengths] == get_vision_cu_seqlens(torch.tensor([grid])).diff().tolist()


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
