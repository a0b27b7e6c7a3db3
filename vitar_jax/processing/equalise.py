"""Contrast-limited adaptive histogram equalisation (CLAHE), as in OpenCV."""

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

TILES = 8  # along each side
CLIP_LIMIT = 2.0  # highest count of a grey value in a tile, relative to a flat histogram


def clahe(image: Image.Image) -> Image.Image:
    """Returns an image, equalised tile by tile, with limited contrast. Of a colour image, only the luminance changes.

    The grey values are those of OpenCV's `createCLAHE` with a clip limit of `CLIP_LIMIT` and `TILES` x `TILES` tiles. The
    method is that of Zuiderveld (Graphics Gems IV, 1994).
    """
    if image.mode == "L":
        return Image.fromarray(_equalised(np.asarray(image)))
    luminance, *colour = image.convert("RGB").convert("YCbCr").split()
    return Image.merge("YCbCr", [clahe(luminance), *colour]).convert("RGB")


def _equalised(grey: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows columns"]:
    rows, columns = grey.shape
    # Tiles are of equal size. The image continues as in a mirror, and by a whole tile if one side alone needs more.
    missing = [-side % TILES for side in grey.shape]
    if any(missing):
        missing = [TILES - side % TILES for side in grey.shape]
    padded = np.pad(grey, [(0, more) for more in missing], "reflect" if min(grey.shape) > 1 else "edge")
    height, width = (side // TILES for side in padded.shape)
    tiles = padded.reshape(TILES, height, TILES, width).swapaxes(1, 2).reshape(TILES * TILES, height * width)
    counts = np.stack([np.bincount(tile, minlength=256) for tile in tiles])
    shares = np.cumsum(_clipped(counts, height * width), axis=1).astype(np.float32)
    tables = np.rint(shares * np.float32(255 / (height * width))).astype(np.float32).reshape(TILES, TILES, 256)
    above, below, down = _neighbours(rows, height)
    left, right, across = _neighbours(columns, width)
    down = down[:, None]

    def looked_up(y: np.ndarray) -> np.ndarray:
        """Returns grey values by the tables of one row of tiles per row, interpolated along columns."""
        first, second = (tables[y[:, None], x[None], grey] for x in (left, right))
        return first * (1 - across) + second * across

    return np.rint(looked_up(above) * (1 - down) + looked_up(below) * down).astype(np.uint8)


def _clipped(counts: Integer[np.ndarray, "tiles 256"], area: int) -> Integer[np.ndarray, "tiles 256"]:
    """Returns histograms whose counts above the limit are spread over all grey values."""
    limit = max(int(CLIP_LIMIT * area / 256), 1)
    excess = np.maximum(counts - limit, 0).sum(1)
    spread = np.minimum(counts, limit) + (excess // 256)[:, None]
    for histogram, rest in zip(spread, excess % 256, strict=True):
        if rest:
            histogram[:: max(256 // rest, 1)][:rest] += 1
    return spread


def _neighbours(pixels: int, tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tiles before and after each pixel along an axis, and the weight of the one after."""
    place = np.arange(pixels, dtype=np.float32) * np.float32(1 / tile) - np.float32(0.5)
    first = np.floor(place).astype(int)
    return np.maximum(first, 0), np.minimum(first + 1, TILES - 1), place - first.astype(np.float32)
