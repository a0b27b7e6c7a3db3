"""Positions of tokens and patches, as index arrays built on the host.

The device never sees a `grid_thw`. It sees the M-RoPE ids of tokens, the rotary ids of patches, and images that are already
laid out in windows.

    t, h, w: size of a grid, in patches      merge unit: merge_size x merge_size patches that become one token
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int32

from vitar_jax.errors import ImageError

Grid = tuple[int, int, int]  # (t, h, w) in patches; t is 1 for an image and the number of slices for a video


# Tokens: multimodal rotary positions (M-RoPE)


def append_positions(
    next_position: int,
    token_ids: Sequence[int] | np.ndarray,
    grids: Sequence[Grid],
    *,
    image_token_id: int,
    video_token_id: int,
    merge_size: int,
    tokens_per_second: int,
    seconds_per_grid: Sequence[float] = (),
) -> tuple[Int32[np.ndarray, "3 n"], int]:
    """Returns the M-RoPE ids of tokens that are appended to a sequence, and the next position.

    Appending tokens in several calls gives the same ids as appending them in one call. The ids of text increase by one per
    token and are equal in all three rows. The ids of an image token are its row and column, relative to the start of the
    image. The position after an image is its start plus its longer side:

        tokens   a  b  <image of 2 x 3 tokens>  c            next_position: 0 before, 6 after
        time     0  1   2  2  2  2  2  2        5
        height   0  1   2  2  2  3  3  3        5
        width    0  1   2  3  4  2  3  4        5

    The slices of a video also advance in time, by `tokens_per_second` per second. Text after a video goes on after the
    video's largest position, in time or in space:

        tokens   a  <video of 3 x 1 x 2 tokens, 1 s per slice>  b            next_position: 0 before, 7 after
        time     0   1  1  3  3  5  5                           6
        height   0   1  1  1  1  1  1                           6
        width    0   1  2  1  2  1  2                           6

    Args:
      next_position: Position of the first appended token; 0 at the start of a sequence.
      token_ids: Appended tokens [n], without padding.
      grids: Grids of the appended images and videos, in order.
      tokens_per_second: `tokens_per_second` of the model's vision config.
      seconds_per_grid: For each of `grids`, the time between two slices of the video (seconds; Hugging Face's
        `second_per_grid_ts`). The values of images are ignored. If empty, 1 for all.

    Returns:
      position_ids and the next position, as from Qwen's `get_rope_index` (transformers 4.49 to 4.57). transformers 5 starts
      the text after a video at the video's start plus its longer side, whatever its duration.

    Raises:
      ValueError: If the number of vision tokens does not match `grids`, if the tokens of one grid are not contiguous, or if
        `seconds_per_grid` has another length than `grids`.
    """
    token_ids = np.asarray(token_ids, dtype=np.int64)
    vision_slots = np.flatnonzero((token_ids == image_token_id) | (token_ids == video_token_id))
    grid_tokens = [t * h * w // merge_size**2 for t, h, w in grids]
    if any(h % merge_size or w % merge_size for _, h, w in grids) or len(vision_slots) != sum(grid_tokens):
        raise ValueError(
            f"got {len(vision_slots)} vision tokens; the grids {list(grids)} of images and videos take "
            f"{' + '.join(map(str, grid_tokens)) or 0} tokens at merge_size {merge_size}"
        )

    position_ids = np.empty((3, len(token_ids)), np.int32)
    seconds_per_grid = seconds_per_grid if len(seconds_per_grid) else [1.0] * len(grids)
    done = taken = 0  # number of tokens with ids, and of vision tokens among them
    for grid, count, seconds in zip(grids, grid_tokens, seconds_per_grid, strict=True):
        start = int(vision_slots[taken])
        end = start + count
        if vision_slots[taken + count - 1] != end - 1 or np.ptp(token_ids[start:end]):
            raise ValueError(f"the {count} tokens of grid {grid} starting at {start} are not contiguous")
        position_ids[:, done:start] = np.arange(next_position, next_position + start - done)
        next_position += start - done
        is_image = token_ids[start] == image_token_id
        step = 1.0 if is_image else float(np.float32(tokens_per_second) * np.float32(seconds))
        position_ids[:, start:end] = next_position + _grid_positions(grid, merge_size, step)
        next_position = int(position_ids[:, start:end].max()) + 1
        done, taken = end, taken + count
    position_ids[:, done:] = np.arange(next_position, next_position + len(token_ids) - done)
    return position_ids, next_position + len(token_ids) - done


def _grid_positions(grid: Grid, merge_size: int, step: float) -> Int32[np.ndarray, "3 n"]:
    """Returns time, row and column of each token of an image or a video, starting at 0, with slices `step` apart."""
    t, h, w = grid
    ids = np.indices((t, h // merge_size, w // merge_size), dtype=np.int32).reshape(3, -1)
    times = np.arange(t, dtype=np.float32) * np.float32(step)  # fp32 and rounded down, as in the reference
    ids[0] = times.astype(np.int32)[ids[0]]
    return ids


# Patches: the windows of the vision tower


def slices(patches: np.ndarray, grid_thw: Grid) -> list[tuple[np.ndarray, Grid]]:
    """Splits a video into its slices, each of which is an image to the vision tower. An image is its own only slice.

    In the reference, both windowed and full attention stay within one slice.

    Args:
      patches: float32 [t * h * w, C].

    Returns:
      t pairs of patches [h * w, C] (views) and grid (1, h, w), in order.
    """
    t, h, w = grid_thw
    return [(part, (1, h, w)) for part in patches.reshape(t, -1, patches.shape[1])]


@dataclass(frozen=True)
class WindowLayout:
    """The order of an image's patches in its attention windows."""

    order: np.ndarray
    """int32 [P]: the i-th patch in window order is patch order[i] of the image processor."""
    window_lengths: np.ndarray
    """int32 [W]: number of patches per window; windows at the lower and right edge may have fewer."""
    feature_slot: np.ndarray
    """int32 [P / merge_size**2]: index of the image's k-th token (raster order) among the features in window order.
    Hugging Face's `argsort(window_index)`."""


@dataclass(frozen=True, order=True)
class SizeClass:
    """A static shape that images are padded up to: `windows` windows of `window_patches` slots each."""

    windows: int
    window_patches: int

    @property
    def slots(self) -> int:
        return self.windows * self.window_patches


@dataclass(frozen=True)
class VisionLayout:
    """How a model family's vision tower takes images.

    Attributes:
      window_size: Side of an attention window in pixels. 0 means that an image is one window.
      tokens_per_second: Speed of the position ids of a video. None means that the family's videos are not supported.
      size_classes: (windows, window_patches) of static shapes for images of any size, smallest first.
    """

    window_size: int = 0
    tokens_per_second: int | None = None
    size_classes: tuple[tuple[int, int], ...] = ()


@lru_cache(maxsize=4096)
def window_layout(grid_thw: Grid, *, window_size: int, patch_size: int, merge_size: int) -> WindowLayout:
    """Returns the window order of one image.

    A window is a square of `window_size` pixels, in whole merge units. If `window_size` is 0, it is the whole image.

    Windows, merge units within a window and patches within a merge unit are all in row-major order, as in Hugging Face's
    `get_vision_window_index`. The arrays are read-only, because calls share them.

    Raises:
      ValueError: If `grid_thw` is not the grid of one image in whole merge units.
    """
    rows, columns = _token_grid(grid_thw, merge_size)
    side = window_size // merge_size // patch_size or max(rows, columns)
    row, column = np.divmod(np.arange(rows * columns), columns)
    window = row // side * -(-columns // side) + column // side
    window_index = np.argsort(window, kind="stable")  # keeps raster order within a window
    unit = merge_size**2
    return WindowLayout(
        order=_read_only((window_index[:, None] * unit + np.arange(unit)).reshape(-1)),
        window_lengths=_read_only(np.bincount(window) * unit),
        feature_slot=_read_only(np.argsort(window_index)),
    )


def fits(grid_thw: Grid, size_class: SizeClass, *, window_size: int, patch_size: int, merge_size: int) -> bool:
    """Returns whether an image of this grid fits into `size_class`."""
    geometry = {"window_size": window_size, "patch_size": patch_size, "merge_size": merge_size}
    layout = window_layout(tuple(grid_thw), **geometry)
    lengths = layout.window_lengths
    return len(lengths) <= size_class.windows and bool(lengths.max() <= size_class.window_patches)


def smallest_class(grid_thw: Grid, classes: Sequence[SizeClass], *, window_size: int, patch_size: int, merge_size: int) -> int:
    """Returns the index of the class with the fewest slots that fits an image of this grid.

    Raises:
      ImageError: If no class fits the image.
    """
    geometry = {"window_size": window_size, "patch_size": patch_size, "merge_size": merge_size}
    fitting = [index for index, size_class in enumerate(classes) if fits(grid_thw, size_class, **geometry)]
    if not fitting:
        lengths = window_layout(tuple(grid_thw), **geometry).window_lengths
        have = ", ".join(f"{c.windows} x {c.window_patches}" for c in classes) or "none"
        raise ImageError(
            f"an image of grid {tuple(grid_thw)} needs {len(lengths)} windows of {lengths.max()} patches; "
            f"the size classes are (windows x patches): {have}"
        )
    return min(fitting, key=lambda index: classes[index].slots)


def arrange(
    patches: np.ndarray,
    grid_thw: Grid,
    size_class: SizeClass,
    *,
    window_size: int,
    patch_size: int,
    merge_size: int,
    into: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays out the patches of one image in the slots of a size class.

    Slot w * window_patches + j holds the j-th patch of window w. The merger turns slots 4j to 4j + 3 (at merge_size 2) into
    feature j, which is one token:

        window_patches 8    window 0 (2 tokens)      window 1 (1 token)
        slots               0 1 2 3   4 5 6 7        8 9 10 11   (12 to 15 are padding)
        feature             0         1              2           (3 is padding)

    Args:
      patches: float32 [h * w, C] in the image processor's order.
      into: Array of zeros with the shape of `pixels`, which is filled and returned. This avoids one copy of the pixels, which
        are most of a batch.

    Returns:
      pixels: float32 [slots, C], zero at padding.
      patch_positions: int32 [slots, 2], (row, column) of each patch for the rotary embedding, -1 at padding. Read-only,
        because calls share it.
      feature_slots: int32 [h * w / merge_size**2], index of the feature of the k-th token in raster order. Read-only too.

    Raises:
      ValueError: If the image does not fit the class, or the number of patches does not match the grid.
    """
    slots, patch_positions, feature_slots = _arrangement(
        tuple(grid_thw), size_class, window_size=window_size, patch_size=patch_size, merge_size=merge_size
    )
    if len(patches) != len(slots):
        raise ValueError(f"got {len(patches)} patches for an image of grid {tuple(grid_thw)}")
    pixels = np.zeros((size_class.slots, patches.shape[1]), np.float32) if into is None else into
    pixels[slots] = patches
    return pixels, patch_positions, feature_slots


@lru_cache(maxsize=4096)
def _arrangement(
    grid_thw: Grid, size_class: SizeClass, *, window_size: int, patch_size: int, merge_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the index arrays of `arrange`: the slot of each patch int32 [P], patch_positions and feature_slots."""
    geometry = {"window_size": window_size, "patch_size": patch_size, "merge_size": merge_size}
    if size_class.window_patches % merge_size**2:
        raise ValueError(f"{size_class}: window_patches is not a multiple of merge_size**2, {merge_size**2}")
    if not fits(grid_thw, size_class, **geometry):
        raise ValueError(f"an image of grid {grid_thw} does not fit {size_class}")
    layout = window_layout(grid_thw, **geometry)

    # [W, window_patches], True where a slot holds a patch; flatnonzero gives these slots in window order.
    taken = np.arange(size_class.window_patches) < layout.window_lengths[:, None]
    slots_in_window_order = np.flatnonzero(taken)
    slots = np.empty_like(slots_in_window_order)
    slots[layout.order] = slots_in_window_order

    patch_positions = np.full((size_class.slots, 2), -1)
    patch_positions[slots] = _rotary_ids(grid_thw, merge_size)
    feature_slots = slots[:: merge_size**2] // merge_size**2
    return _read_only(slots), _read_only(patch_positions), _read_only(feature_slots)


def _rotary_ids(grid_thw: Grid, merge_size: int) -> np.ndarray:
    """Returns (row, column) of each patch, int [P, 2], in the image processor's order: merge unit by merge unit."""
    rows, columns = _token_grid(grid_thw, merge_size)
    ids = np.indices((rows * merge_size, columns * merge_size))
    units = ids.reshape(2, rows, merge_size, columns, merge_size)
    return units.transpose(1, 3, 2, 4, 0).reshape(-1, 2)


def _token_grid(grid_thw: Grid, merge_size: int) -> tuple[int, int]:
    t, h, w = grid_thw
    if t != 1 or min(h, w) < 1 or h % merge_size or w % merge_size:
        raise ValueError(f"grid: got {tuple(grid_thw)}, expected (1, h, w) with h and w multiples of merge_size {merge_size}")
    return h // merge_size, w // merge_size


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.int32)
    array.setflags(write=False)
    return array
