"""M-RoPE ids from the definition in the docstring of Qwen's `get_rope_index` (transformers 4.49 to 4.57), token by token."""

from collections.abc import Iterator, Sequence

import numpy as np

from vitar_jax.processing.positions import Grid


def qwens_positions(
    token_ids: Sequence[int] | np.ndarray, grids: Sequence[Grid], seconds: Sequence[float], *, pads: Sequence[int], speed: int
) -> np.ndarray:
    """Returns int [3, n]. Text, and the first corner of an image or video, stand one past the largest id before them.

    transformers 5 differs after a video: its text starts at the video's start plus its longer side.

    Args:
      seconds: For each of `grids`, the seconds between the slices of a video; 0 for an image.
      pads: Ids of the tokens of images and videos.
      speed: `tokens_per_second`.
    """
    ids: list[tuple[int, int, int]] = []
    images = iter(zip(grids, seconds, strict=True))
    corners: Iterator[tuple[int, int, int]] = iter(())
    for token in token_ids:
        after = 1 + max((max(triple) for triple in ids), default=-1)
        if token not in pads:
            ids.append((after, after, after))
            continue
        corner = next(corners, None)
        if corner is None:
            corners = _corners(*next(images), after, speed)
            corner = next(corners)
        ids.append(corner)
    return np.array(ids).T


def _corners(grid: Grid, seconds: float, start: int, speed: int) -> Iterator[tuple[int, int, int]]:
    """Yields time, row and column of each 2 x 2 patches. Times are products of fp32, rounded down."""
    interval = np.float32(speed) * np.float32(seconds)
    for step in range(grid[0]):
        for row in range(grid[1] // 2):
            for column in range(grid[2] // 2):
                yield start + int(np.float32(step) * interval), start + row, start + column
