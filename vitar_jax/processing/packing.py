"""Packs examples of any length into one device batch of static shape.

The leading axis `bins` has one bin per data shard, so that nothing about images crosses shards. A row holds one or more
examples in sequence, distinguished by `segment_ids` (0 is padding).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from vitar_jax.errors import TooLongError
from vitar_jax.processing.mask_targets import BITS, SCALE, ExampleMasks, MaskBatch, MaskRoom, MaskShape, write_masks
from vitar_jax.processing.positions import Grid, SizeClass, slices
from vitar_jax.processing.processor import Processor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A device batch: numpy arrays on the host, `jax.Array`s on the devices. All have a leading axis of bins.

    Attributes:
      token_ids, segment_ids, vision_index: int32 [bins, rows, S]. `vision_index` points into the features of the bin's own
        images and is -1 for text; segment 0 is padding.
      loss_mask: bool [bins, rows, S], true for tokens that the policy wrote.
      position_ids: int32 [bins, 3, rows, S].
      pixels: float32 [bins, images, patches, C].
      patch_positions: int32 [bins, images, windows, window_patches, 2].
      extras: Further values that an objective needs for each token, by name, float32 [bins, rows, S].
      masks: Mask targets, or None.
    """

    token_ids: Any
    segment_ids: Any
    loss_mask: Any
    vision_index: Any
    position_ids: Any
    pixels: Any
    patch_positions: Any
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    masks: MaskBatch | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """The model's keyword arguments."""
        return {name: array for name, array in vars(self).items() if name not in ("loss_mask", "extras", "masks")}

    def with_extras(self, **extras: Any) -> "Batch":
        """Returns a batch in which `extras` are added or replaced."""
        return dataclasses.replace(self, extras={**self.extras, **extras})


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenized training example. Token arrays have one entry per token.

    Attributes:
      vision_index: Index of an image token's feature among the features of `patches`, in order; -1 for text.
      patches, grids: Patches, float32 [t * h * w, C], and grid of each image or video.
      content_ids: Hash of each image's or video's content. A bin encodes equal content once.
      extras: Further float32 values for each token, by their names in the batch.
      masks: Mask targets, or None.
    """

    name: str
    token_ids: np.ndarray
    loss_mask: np.ndarray
    position_ids: np.ndarray
    vision_index: np.ndarray
    patches: tuple[np.ndarray, ...]
    grids: tuple[Grid, ...]
    content_ids: tuple[str, ...]
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    masks: ExampleMasks | None = None


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The static shape of a recipe's training batches.

    Attributes:
      rows, tokens: Number of rows per bin, and of tokens per row.
      images, size_class: Number of image rows per bin, and the padded shape of each. A video takes one row per slice.
      policy_tokens: Maximum number of tokens under the loss mask per bin.
      masks: Shape of the mask targets. None for a stage without them.
      segments: Whether a row may hold several examples.
      sequence: Number of adjacent bins that `pack` fills one after another, so that later ones stay empty. With 1, it spreads
        the examples evenly over all bins.
    """

    bins: int
    rows: int
    tokens: int
    images: int
    size_class: SizeClass
    policy_tokens: int
    masks: MaskShape | None = None
    segments: bool = True
    sequence: int = 1

    def filled_share(self, mean_tokens: float) -> float:
        """Returns the smallest share of the bins that holds one example per row, given the examples' mean length in tokens."""
        return max(1, math.ceil(self.sequence * mean_tokens / self.tokens)) / self.sequence


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """Shape, type and padding value of one array of a batch."""

    shape: tuple[int, ...]
    dtype: Any
    padding: int = 0

    def empty(self) -> np.ndarray:
        # The pages of an array of zeros are allocated only when they are touched.
        return np.full(self.shape, self.padding, self.dtype) if self.padding else np.zeros(self.shape, self.dtype)


def batch_layout(shape: BatchShape, patch_width: int, extras: Sequence[str] = ()) -> Batch:
    """Returns a batch whose leaves are `ArrayLayout`s."""
    tokens, images = (shape.bins, shape.rows, shape.tokens), (shape.bins, shape.images)
    return Batch(
        token_ids=ArrayLayout(tokens, np.int32),
        segment_ids=ArrayLayout(tokens, np.int32),
        loss_mask=ArrayLayout(tokens, np.bool_),
        vision_index=ArrayLayout(tokens, np.int32, -1),
        position_ids=ArrayLayout((shape.bins, 3, shape.rows, shape.tokens), np.int32),
        pixels=ArrayLayout((*images, shape.size_class.slots, patch_width), np.float32),
        patch_positions=ArrayLayout((*images, shape.size_class.windows, shape.size_class.window_patches, 2), np.int32, -1),
        extras={name: ArrayLayout(tokens, np.float32) for name in extras},
        masks=None if shape.masks is None else _mask_layout(shape.bins, shape.masks),
    )


def _mask_layout(bins: int, shape: MaskShape) -> MaskBatch:
    entries, masks, side = (bins, shape.entries), (bins, shape.entries, shape.masks), shape.side // SCALE
    return MaskBatch(
        pixels=ArrayLayout((bins, shape.images, shape.side, shape.side, 3), np.uint8),
        image=ArrayLayout(entries, np.int32),
        row=ArrayLayout(entries, np.int32),
        positions=ArrayLayout(masks, np.int32, -1),
        targets=ArrayLayout((*masks, side, side // BITS), np.uint8),
        draws=ArrayLayout(entries, np.uint32),
    )


class _Room:
    """The room that is left in a bin."""

    def __init__(self, shape: BatchShape):
        self.shape = shape
        self.used = np.zeros(shape.rows, int)
        self.segments = np.zeros(shape.rows, int)
        self.policy_tokens = 0
        self.images = 0  # number of image rows in use
        self.places: dict[str, int] = {}  # content id of an image -> its first image row
        self.masks = None if shape.masks is None else MaskRoom(shape.masks)

    def row_for(self, example: Example) -> int | None:
        """Returns the first row with room for an example.

        None if no row has room, or if the bin has no room for the example's new images, its tokens under the loss mask or its
        masks.
        """
        fitting = self.used + len(example.token_ids) <= self.shape.tokens
        if not self.shape.segments:
            fitting &= self.segments == 0
        seen = zip(example.content_ids, example.grids, strict=True)
        new = {content: grid[0] for content, grid in seen if content not in self.places}
        if (
            not fitting.any()
            or self.images + sum(new.values()) > self.shape.images
            or self.policy_tokens + int(example.loss_mask.sum()) > self.shape.policy_tokens
            or (self.masks and example.masks and not self.masks.has_room(example.masks, example.content_ids[0]))
        ):
            return None
        return int(fitting.argmax())

    def take(self, example: Example, row: int) -> tuple[int, int] | None:
        """Takes the room of an example in a row that `row_for` returned. Returns the entry and the image of its masks."""
        for content, grid in zip(example.content_ids, example.grids, strict=True):
            if content not in self.places:
                self.places[content] = self.images
                self.images += grid[0]
        self.used[row] += len(example.token_ids)
        self.segments[row] += 1
        self.policy_tokens += int(example.loss_mask.sum())
        return self.masks.take(example.content_ids[0]) if self.masks and example.masks else None


class _Bin:
    """A bin during packing. `arrays` are the bin's part of the batch."""

    def __init__(self, shape: BatchShape, processor: Processor, arrays: Batch):
        self.room, self.processor, self.arrays = _Room(shape), processor, arrays
        self.features: dict[str, np.ndarray] = {}  # content id of an image -> indices of its features in the bin

    def add(self, example: Example) -> bool:
        """Adds a whole example and returns True, or leaves the bin unchanged and returns False."""
        row = self.room.row_for(example)
        if row is None:
            return False
        start = int(self.room.used[row])
        masks = self.room.take(example, row)
        images = zip(example.content_ids, example.patches, example.grids, strict=True)
        places = [self._features(*image) for image in images]
        lookup = np.concatenate([*places, np.array([-1], np.int32)])  # the last entry serves text, whose index is -1
        span = slice(start, start + len(example.token_ids))
        self.arrays.token_ids[row, span] = example.token_ids
        self.arrays.segment_ids[row, span] = self.room.segments[row]
        self.arrays.loss_mask[row, span] = example.loss_mask
        self.arrays.vision_index[row, span] = lookup[example.vision_index]
        self.arrays.position_ids[:, row, span] = example.position_ids
        for name, values in example.extras.items():
            self.arrays.extras[name][row, span] = values
        if masks and example.masks and self.arrays.masks is not None:
            write_masks(self.arrays.masks, example.masks, *masks, row, start)
        return True

    def _features(self, content: str, patches: np.ndarray, grid: Grid) -> np.ndarray:
        """Returns the indices in the bin of an image's or a video's features. Lays out its patches if the bin lacks them."""
        if content not in self.features:
            places, size_class = [], self.room.shape.size_class
            for image, part in enumerate(slices(patches, grid), start=self.room.places[content]):
                _, positions, slots = self.processor.arrange(*part, size_class, into=self.arrays.pixels[image])
                self.arrays.patch_positions[image] = positions
                places.append(image * self.processor.features(size_class) + slots)
            self.features[content] = np.concatenate(places)
        return self.features[content]


class Packer:
    """A device batch that is filled example by example.

    Args:
      extras: Names of the examples' extras.
    """

    def __init__(self, shape: BatchShape, processor: Processor, extras: Sequence[str] = ()):
        self.shape = shape
        self._batch: Batch = jax.tree.map(ArrayLayout.empty, batch_layout(shape, processor.patch_width, extras))
        self._bins = [_Bin(shape, processor, jax.tree.map(itemgetter(i), self._batch)) for i in range(shape.bins)]

    def add(self, example: Example, home: int = 0) -> bool:
        """Adds an example to the first row with room, searching bins from `home` on and wrapping around.

        Returns whether a bin had room.
        """
        return any(self._bins[(home + k) % self.shape.bins].add(example) for k in range(self.shape.bins))

    def batch(self) -> Batch:
        """Returns the batch filled so far. Later additions write to the same arrays."""
        return self._batch


def pack(examples: Sequence[Example], shape: BatchShape, processor: Processor) -> Batch:
    """Packs all examples into one batch. Adjacent examples share a bin, and therefore images, where they fit.

    Raises:
      TooLongError: If an example does not fit. The message names the example and the shape.
    """
    packer = Packer(shape, processor, sorted({name for example in examples for name in example.extras}))
    for number, home in _homes(examples, shape):
        if not packer.add(examples[number], home):
            raise _does_not_fit(examples[number], shape)
    return packer.batch()


def _homes(examples: Sequence[Example], shape: BatchShape) -> list[tuple[int, int]]:
    """Returns the bin of each example, as pairs of example and bin in the order in which they are added.

    Examples are spread evenly over the bins. Those of the bins that are filled in sequence then move to the first of these bins
    with room. Of two orders, the one that leaves more bins empty is taken: their own, which keeps neighbours together, and the
    longest first.
    """
    spread = [(number, number * shape.bins // len(examples)) for number in range(len(examples))]
    if shape.sequence == 1:
        return spread
    homes: list[tuple[int, int]] = []
    for sequence, members in groupby(spread, key=lambda pair: pair[1] // shape.sequence):
        own = list(members)
        orders = own, sorted(own, key=lambda pair: -len(examples[pair[0]].token_ids))
        tried = [_first_fit([number for number, _ in order], examples, shape) for order in orders]
        found = min((one for one in tried if one), key=lambda one: max(one.values()), default=None)
        homes += own if found is None else [(number, sequence * shape.sequence + place) for number, place in found.items()]
    return homes


def _first_fit(order: Sequence[int], examples: Sequence[Example], shape: BatchShape) -> dict[int, int] | None:
    """Returns the first bin with room for each example in this order. None if the bins in sequence do not hold them all."""
    rooms, places = [_Room(shape) for _ in range(shape.sequence)], {}
    for number in order:
        for place, room in enumerate(rooms):
            row = room.row_for(examples[number])
            if row is not None:
                room.take(examples[number], row)
                places[number] = place
                break
        else:
            return None
    return places


def check_fits(example: Example, shape: BatchShape) -> None:
    """Raises TooLongError if an example does not fit into an empty batch. The message names the example and the shape."""
    if _Room(shape).row_for(example) is None:
        raise _does_not_fit(example, shape)


def _does_not_fit(example: Example, shape: BatchShape) -> TooLongError:
    masks = "" if example.masks is None else f"{len(example.masks.positions)} masks, "
    return TooLongError(
        f"{example.name}: {masks}{len(example.token_ids)} tokens ({int(example.loss_mask.sum())} to learn) and "
        f"{sum(grid[0] for grid in example.grids)} images do not fit what is left of a batch of {shape}; "
        f"tokens, policy_tokens and row_images of the stage{' and masks of its objective' if masks else ''} make room"
    )
