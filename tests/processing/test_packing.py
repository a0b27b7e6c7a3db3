"""Packing: every example whole and in one place, its images in the same bin, and what does not fit named."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit import tiny
from tests.kit.images import noise
from vitar_jax.errors import DataError
from vitar_jax.processing.packing import Batch, BatchShape, Example, pack

PROCESSOR = tiny.processor(12)
SHAPE = BatchShape(bins=2, rows=2, tokens=96, images=3, size_class=PROCESSOR.size_classes[0], policy_tokens=60)
PER_IMAGE = PROCESSOR.features(SHAPE.size_class)
SIZES = [(56, 56), (112, 84), (84, 140), (112, 28), (196, 84)]


def example(index: int, images: int = 1, words: int = 4, steps: int = 0) -> Example:
    """An example with so many images, and with a video of `steps` slices where that is above 0."""
    rng = np.random.default_rng(index)
    parts: list[tiny.Part] = [noise(*SIZES[rng.integers(len(SIZES))], seed=index * 10 + i) for i in range(images)]
    if steps:
        parts.append(tiny.clip(steps, *rng.integers(1, 4, 2), seconds=1.5, seed=index))
    made = tiny.example(f"example-{index}", [*parts, " lesion" * words], PROCESSOR)
    extras = {"weights": rng.normal(size=len(made.token_ids)).astype(np.float32)}
    return dataclasses.replace(made, extras=extras)


def found(batch: Batch, wanted: Example) -> tuple[int, int, slice]:
    """The one place of an example: bin, row and span. Its weights tell it from all others."""
    starts = np.argwhere(batch.extras["weights"] == wanted.extras["weights"][0])
    assert len(starts) == 1
    bin_, row, start = map(int, starts[0])
    return bin_, row, slice(start, start + len(wanted.token_ids))


def check(batch: Batch, wanted: Example) -> int:
    """Everything about one example in a batch. Returns its bin."""
    bin_, row, span = found(batch, wanted)
    for name in ("token_ids", "loss_mask"):
        assert np.array_equal(getattr(batch, name)[bin_, row, span], getattr(wanted, name))
    assert np.array_equal(batch.extras["weights"][bin_, row, span], wanted.extras["weights"])
    assert np.array_equal(batch.position_ids[bin_, :, row, span], wanted.position_ids)

    segment_ids = batch.segment_ids[bin_, row]
    segment = segment_ids[span.start]
    assert segment > 0
    assert np.array_equal(np.flatnonzero(segment_ids == segment), np.arange(span.start, span.stop))

    # Each image token leads to the pixels of its four patches, in the bin that the token is in.
    index = batch.vision_index[bin_, row, span]
    assert np.array_equal(index < 0, wanted.vision_index < 0)
    patches = np.concatenate([*wanted.patches, np.zeros((0, PROCESSOR.patch_width))])
    for place, feature in zip(index[index >= 0], wanted.vision_index[index >= 0], strict=True):
        image, slot = divmod(place, PER_IMAGE)
        assert np.array_equal(batch.pixels[bin_, image, 4 * slot : 4 * slot + 4], patches[4 * feature : 4 * feature + 4])
    return bin_


specs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=8)


@given(specs)
@settings(max_examples=60)
def test_every_example_lies_whole_in_one_place(chosen: list[tuple[int, int, int]]) -> None:
    examples = [example(i, *spec) for i, spec in enumerate(chosen)]
    try:
        batch = pack(examples, SHAPE, PROCESSOR)
    except DataError:
        return  # they were too many; the next tests say when
    for wanted in examples:
        check(batch, wanted)
    tokens = sum(len(e.token_ids) for e in examples)
    assert (batch.segment_ids > 0).sum() == tokens
    padding = batch.segment_ids == 0
    assert not batch.loss_mask[padding].any()
    assert (batch.vision_index[padding] == -1).all()
    assert batch.loss_mask.sum(axis=(1, 2)).max() <= SHAPE.policy_tokens
    # As many patches stand in the slots as the images have, and nothing else does.
    assert (batch.patch_positions[..., 0] >= 0).sum() == sum(len(p) for e in examples for p in e.patches)


@given(specs, st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3)]))
@settings(max_examples=40)
def test_bins_in_sequence_are_filled_one_after_another(chosen: list[tuple[int, int, int]], bins: tuple[int, int]) -> None:
    """Every example stays among the bins that it would be spread over, and those hold no more bins than they would then."""
    examples = [example(i, *spec) for i, spec in enumerate(chosen)]
    spread = dataclasses.replace(SHAPE, bins=bins[0], images=8)
    try:
        expected = pack(examples, spread, PROCESSOR)
    except DataError:
        return
    batch = pack(examples, dataclasses.replace(spread, sequence=bins[1]), PROCESSOR)
    for wanted in examples:
        assert check(batch, wanted) // bins[1] == check(expected, wanted) // bins[1]
    held, before = ((b.segment_ids > 0).any(axis=(1, 2)).reshape(-1, bins[1]) for b in (batch, expected))
    assert (held.sum(axis=1) <= before.sum(axis=1)).all()
    assert (np.diff(held.astype(int), axis=1) <= 0).all()  # the last ones stay empty
    if bins[1] == 1:
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True))


def test_short_examples_of_a_group_share_rows_and_their_image() -> None:
    """Four of six bins stay empty: a bin has two rows of 96 tokens, and each holds three examples."""
    first = example(0, words=1)
    group = [
        dataclasses.replace(first, name=f"member-{i}", extras={"weights": np.full(len(first.token_ids), i + 1, np.float32)})
        for i in range(12)
    ]
    assert 3 * len(first.token_ids) <= SHAPE.tokens < 4 * len(first.token_ids)
    batch = pack(group, dataclasses.replace(SHAPE, bins=6, images=1, sequence=6), PROCESSOR)
    assert (batch.segment_ids > 0).any(axis=(1, 2)).tolist() == [True, True, *[False] * 4]
    assert [sorted(set(row.tolist()) - {0}) for row in batch.extras["weights"][0]] == [[1, 2, 3], [4, 5, 6]]
    assert (batch.patch_positions[..., 0] >= 0).any(axis=(2, 3)).sum() == 2


def test_a_back_end_without_segments_gets_one_example_a_row() -> None:
    examples = [example(i, images=0, words=1) for i in range(4)]
    assert pack(examples, SHAPE, PROCESSOR).segment_ids.max() == 2
    batch = pack(examples, dataclasses.replace(SHAPE, segments=False), PROCESSOR)
    assert batch.segment_ids.max() == 1 and batch.segment_ids.any(axis=-1).all()
    with pytest.raises(DataError, match="example-2"):
        pack(examples[:3], dataclasses.replace(SHAPE, bins=1, segments=False), PROCESSOR)


def test_shapes_and_types() -> None:
    batch = pack([example(0)], SHAPE, PROCESSOR)
    rows = (2, 2, 96)
    windows, window_patches = SHAPE.size_class.windows, SHAPE.size_class.window_patches
    arrays = {**batch.inputs, "loss_mask": batch.loss_mask, **batch.extras}
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "token_ids": (rows, "int32"),
        "segment_ids": (rows, "int32"),
        "loss_mask": (rows, "bool"),
        "vision_index": (rows, "int32"),
        "position_ids": ((2, 3, 2, 96), "int32"),
        "pixels": ((2, 3, windows * window_patches, PROCESSOR.patch_width), "float32"),
        "patch_positions": ((2, 3, windows, window_patches, 2), "int32"),
        "weights": (rows, "float32"),
    }


def test_neighbours_share_a_bin() -> None:
    examples = [example(i, words=1) for i in range(5)]
    batch = pack(examples, SHAPE, PROCESSOR)
    assert [check(batch, e) for e in examples] == [0, 0, 0, 1, 1]


def test_a_full_bin_sends_an_example_to_the_next() -> None:
    """The second is at home in bin 0, which has no room for its images; no trace of it is there."""
    examples = [example(0, images=3, words=1), example(1, images=2, words=1), example(2, images=1)]
    batch = pack(examples, SHAPE, PROCESSOR)
    assert [check(batch, e) for e in examples] == [0, 1, 1]
    alone = pack(examples[:1], SHAPE, PROCESSOR)
    for ours, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
        assert np.array_equal(ours[0], expected[0])


def test_a_shared_image_is_encoded_once_a_bin() -> None:
    first = example(0, images=2)
    group = [dataclasses.replace(first, extras={"weights": np.full(len(first.token_ids), i + 1, np.float32)}) for i in range(2)]
    lone = dataclasses.replace(SHAPE, bins=1)
    batch = pack(group, lone, PROCESSOR)
    filled = (batch.patch_positions[..., 0] >= 0).any(axis=(2, 3))
    assert filled.tolist() == [[True, True, False]]
    for name in ("token_ids", "vision_index"):
        places = [(row, span) for _, row, span in (found_block(batch, i + 1) for i in range(2))]
        array = getattr(batch, name)[0]
        assert np.array_equal(array[places[0]], array[places[1]])
    # A bin never takes features of another: on two bins there are two copies.
    batch = pack(group, SHAPE, PROCESSOR)
    assert (batch.patch_positions[..., 0] >= 0).any(axis=(2, 3)).sum(axis=1).tolist() == [2, 2]


def test_equal_images_are_encoded_once_a_bin_whoever_read_them() -> None:
    """Members of a group that were built separately share their images, as forks do."""
    group = [dataclasses.replace(example(7, images=2), name=f"member-{i}") for i in range(2)]
    assert group[0].patches[0] is not group[1].patches[0] and group[0].content_ids == group[1].content_ids
    batch = pack(group, dataclasses.replace(SHAPE, bins=1, images=2), PROCESSOR)
    rows = np.argwhere(batch.vision_index >= 0)
    assert sorted(set(batch.vision_index[batch.vision_index >= 0].tolist())) == sorted(
        batch.vision_index[tuple(rows[: len(rows) // 2].T)].tolist()
    )
    other = dataclasses.replace(group[1], content_ids=("other", "still other"))
    with pytest.raises(DataError, match="member-1"):
        pack([group[0], other], dataclasses.replace(SHAPE, bins=1, images=2), PROCESSOR)


def test_a_video_takes_a_row_for_each_slice() -> None:
    """It is an image row a slice in the budget too: two slices and an image fill the three rows of the first bin."""
    examples = [example(0, images=1, words=1, steps=2), example(1, images=1, words=1)]
    batch = pack(examples, SHAPE, PROCESSOR)
    assert [check(batch, e) for e in examples] == [0, 1]
    filled = (batch.patch_positions[..., 0] >= 0).any(axis=(2, 3))
    assert filled.tolist() == [[True, True, True], [True, False, False]]
    with pytest.raises(DataError, match="example-0: .* 4 images do not fit"):
        pack([example(0, images=1, words=1, steps=3)], SHAPE, PROCESSOR)


def found_block(batch: Batch, weight: float) -> tuple[int, int, slice]:
    bin_, row, start = map(int, np.argwhere(batch.extras["weights"] == weight)[0])
    return bin_, row, slice(start, start + int((batch.extras["weights"] == weight).sum()))


def test_an_example_without_an_extra_has_zeros() -> None:
    plain = dataclasses.replace(example(1), extras={})
    batch = pack([example(0), plain], SHAPE, PROCESSOR)
    assert not batch.extras["weights"][1].any()


@pytest.mark.parametrize(
    "shape, said",
    [
        ({"tokens": 20}, "tokens"),
        ({"images": 1}, "2 images"),
        ({"policy_tokens": 3}, "to learn"),
    ],
)
def test_an_example_that_does_not_fit_is_named(shape: dict[str, int], said: str) -> None:
    small = dataclasses.replace(SHAPE, **shape)
    with pytest.raises(DataError, match=f"^example-1: .*{said}.*BatchShape"):
        pack([example(0, images=0, words=0), example(1, images=2)], small, PROCESSOR)
