"""Logits and gradients against Hugging Face's module, and what each mechanism is worth when it is broken."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.kit import parity, tiny
from tests.kit.images import noise
from tests.kit.parity import BROKEN, TOLERANCE, Case, Comparison, forward, relative_error
from vitar_jax.processing.packing import Batch, BatchShape, pack

PROCESSOR = tiny.processor(12)
CLASS = PROCESSOR.size_classes[0]
# (width, height): 3 x 4, 2 x 2, 5 x 3 and 7 x 3 tokens, in windows of 2 x 2.
WIDE, SQUARE, ODD, LONG = (112, 84), (56, 56), (84, 140), (196, 84)
PACKED = BatchShape(1, 4, 170, 24, CLASS, 680)  # several examples in most rows
BINS = BatchShape(2, 2, 170, 14, CLASS, 340)
LONE = BatchShape(1, 1, 170, 5, CLASS, 170)


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """Products in full fp32, on every back end."""
    with jax.default_matmul_precision("highest"):
        yield


def padded(side: str, seed: int) -> dict[str, parity.Conversation]:
    """Rows with different numbers of images."""
    return {
        f"{side}: two images": [[noise(*ODD, seed=seed), "then", noise(*SQUARE, seed=seed + 1), side]],
        f"{side}: a video": [[tiny.clip(2, 2, 2, seconds=1.5, seed=seed + 2), "Where is it?", side]],
        f"{side}: text": [["Is the texture flat?", side]],
        f"{side}: one image": [[noise(*WIDE, seed=seed + 3), side]],
    }


COMPARISON = Comparison(
    tiny,
    PROCESSOR,
    PACKED,
    {
        "text only": [["Where is the lesion and in which region of it?"]],
        "one image": [[noise(*WIDE, seed=1), "Which texture is it?"]],
        "several images": [[noise(*SQUARE, seed=2), "left", noise(*ODD, seed=3), noise(*WIDE, seed=4), "Look twice."]],
        "text after images": [[noise(*LONG, seed=5), "Now answer the question from this region. " * 4]],
        "an observation": [[noise(*WIDE, seed=6), "Where?"], ["zoom"], [noise(*ODD, seed=7), "Now answer."]],
        "a grid of broken windows": [[noise(*ODD, seed=8)]],
        "a strip 28 high": [[noise(168, 28, seed=9), "rows"]],
        "a strip 28 wide": [[noise(28, 168, seed=10), "columns"]],
        "a video": [[tiny.clip(3, 2, 3, seconds=0.75, seed=11), "Now answer the question from this region."]],
        "videos and an image": [
            [
                tiny.clip(2, 3, 1, seconds=2.5, seed=12),
                noise(*SQUARE, seed=13),
                "then",
                tiny.clip(2, 1, 5, seconds=1.0, seed=14),
                "Yes",
            ]
        ],
        "short": [["A"]],
        **padded("left", 20),
        **padded("right", 30),
    },
)


@pytest.mark.parametrize("tie", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["untied", "tied"])
def test_logits_equal_hugging_faces(tie: bool) -> None:
    batch = COMPARISON.batch
    assert batch.segment_ids.max() >= 2  # rows are shared
    assert (batch.segment_ids[..., 0] == 0).any() and (batch.segment_ids[..., -1] == 0).any()  # and padded
    assert min(theirs.std() for theirs in COMPARISON.references(tie)[0].values()) >= 1
    assert parity.wrong(COMPARISON.errors(batch, tie=tie)) == {}


@pytest.mark.slow
def test_an_example_by_itself_has_the_logits_of_a_packed_one() -> None:
    model = tiny.pretrained()[1]
    batch = pack([case.example for case in COMPARISON.packed], BINS, PROCESSOR)
    together = np.asarray(forward(model, batch))
    where = parity.places(batch, COMPARISON.packed)
    for case in COMPARISON.packed:
        alone = np.asarray(forward(model, pack([case.example], LONE, PROCESSOR)))[0, 0, : len(case.example.token_ids)]
        assert relative_error(together[where[case.name]], alone) <= TOLERANCE / 10, case.name


def test_what_stands_in_padding_does_not_matter() -> None:
    batch = COMPARISON.batch
    rng = np.random.default_rng(0)
    padding, no_patch = batch.segment_ids == 0, batch.patch_positions[..., 0] < 0
    dirty = dataclasses.replace(
        batch,
        token_ids=np.where(padding, rng.integers(0, tiny.VOCAB, padding.shape), batch.token_ids),
        position_ids=np.where(padding[:, None], 77, batch.position_ids),
        pixels=np.where(no_patch.reshape(*no_patch.shape[:2], -1, 1), 9.0, batch.pixels).astype(np.float32),
    )
    assert not np.array_equal(dirty.pixels, batch.pixels)
    assert max(COMPARISON.errors(dirty).values()) <= TOLERANCE


# Mechanisms broken on purpose


def windows_made_one(batch: Batch) -> Batch:
    """All slots of an image in one window: windowed layers then look everywhere."""
    bins, count = batch.patch_positions.shape[:2]
    return dataclasses.replace(batch, patch_positions=batch.patch_positions.reshape(bins, count, 1, -1, 2))


def patches_without_place(batch: Batch) -> Batch:
    return dataclasses.replace(batch, patch_positions=np.minimum(batch.patch_positions, 0))


def rows_for_columns(batch: Batch) -> Batch:
    return dataclasses.replace(batch, patch_positions=batch.patch_positions[..., ::-1])


def features_in_window_order(batch: Batch) -> Batch:
    """Each image's features in the order the tower makes them, as if none had been put back."""
    index = batch.vision_index.copy()
    per_image = PROCESSOR.features(CLASS)
    for bin_, row, span in parity.places(batch, COMPARISON.cases).values():
        taken = index[bin_, row, span]
        for image in range(batch.pixels.shape[1]):
            mine = (taken >= image * per_image) & (taken < (image + 1) * per_image)
            taken[mine] = np.sort(taken[mine])
    return dataclasses.replace(batch, vision_index=index)


def with_positions(batch: Batch, positions: Callable[[Case], np.ndarray]) -> Batch:
    position_ids = batch.position_ids.copy()
    where = parity.places(batch, COMPARISON.cases)
    for case in COMPARISON.cases:
        bin_, row, span = where[case.name]
        position_ids[bin_, :, row, span] = positions(case)
    return dataclasses.replace(batch, position_ids=position_ids)


def positions_of_text(batch: Batch) -> Batch:
    """Every token one further than the last, as in a model without M-RoPE."""
    return with_positions(batch, lambda case: np.arange(len(case.example.token_ids)))


def seconds_ignored(batch: Batch) -> Batch:
    """Every video as if it went by at a second a slice."""
    return with_positions(batch, lambda case: PROCESSOR.append_positions(0, case.example.token_ids, case.example.grids)[0])


def segments_ignored(batch: Batch) -> Batch:
    return dataclasses.replace(batch, segment_ids=np.minimum(batch.segment_ids, 1))


def padding_read(batch: Batch) -> Batch:
    """Padding as if it were more of the row's only segment."""
    return dataclasses.replace(batch, segment_ids=np.maximum(batch.segment_ids, 1))


def images_of_others(batch: Batch) -> Batch:
    return dataclasses.replace(batch, pixels=batch.pixels[:, ::-1], patch_positions=batch.patch_positions[:, ::-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "break_it, suffering",
    [
        (windows_made_one, "one image"),
        (windows_made_one, "a video"),
        (patches_without_place, "one image"),
        (rows_for_columns, "a strip 28 high"),
        (features_in_window_order, "a grid of broken windows"),
        (positions_of_text, "text after images"),
        (positions_of_text, "several images"),
        (positions_of_text, "an observation"),
        (seconds_ignored, "a video"),
        (segments_ignored, "short"),
        (padding_read, "left: one image"),
        (images_of_others, "one image"),
    ],
)
def test_a_broken_mechanism_shows(break_it: Callable[[Batch], Batch], suffering: str) -> None:
    batch = COMPARISON.batch
    assert COMPARISON.errors(break_it(batch), where=parity.places(batch, COMPARISON.cases))[suffering] >= BROKEN


@pytest.mark.slow
def test_slices_of_a_video_that_see_each_other_show() -> None:
    """All slices in one row of the tower, as if full attention went through time."""
    [video] = [case for case in COMPARISON.packed if case.name == "a video"]
    steps = video.example.grids[0][0]
    batch = pack([video.example], dataclasses.replace(LONE, images=steps), PROCESSOR)
    where = parity.places(batch, [video])
    assert COMPARISON.errors(batch, where=where)["a video"] <= TOLERANCE
    windows = (1, 1, steps * CLASS.windows)
    together = dataclasses.replace(
        batch,
        pixels=batch.pixels.reshape(1, 1, steps * CLASS.slots, -1),
        patch_positions=batch.patch_positions.reshape(*windows, CLASS.window_patches, 2),
    )
    assert COMPARISON.errors(together, where=where)["a video"] >= BROKEN


# Gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    "tie, remat",
    [
        pytest.param(False, False, id="untied"),
        pytest.param(True, True, id="tied, recomputed"),
        pytest.param(True, False, id="tied", marks=pytest.mark.sweep),
        pytest.param(False, True, id="recomputed", marks=pytest.mark.sweep),
    ],
)
def test_gradients_equal_hugging_faces(tie: bool, remat: bool, tmp_path: Path) -> None:
    relative = COMPARISON.gradient_errors(tmp_path, tie=tie, remat="layer" if remat else "none")
    assert parity.wrong(relative) == {}
