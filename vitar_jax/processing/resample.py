"""Bicubic resizing of video frames, bit-identical to torch, which Hugging Face uses for videos.

Hugging Face resizes images with PIL instead. PIL has the same kernel, but it may resize the rows first. Its weights have
22 bits; torch's have 16, including the sign. A few percent of the pixels differ, most of them at sharp edges.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float64, UInt8

_SUPPORT = 2.0  # radius of the kernel (pixels)
_MAX_BITS = 22  # maximum number of fractional bits of a weight
_BLOCK = 16  # new rows per matrix product with the few old rows that they depend on

_Band = tuple[slice, slice, Float64[np.ndarray, "new old"]]


def resize_bicubic(
    pixels: UInt8[np.ndarray, "rows columns channels"], height: int, width: int
) -> UInt8[np.ndarray, "height width channels"]:
    """Resizes like torch's `interpolate(pixels, (height, width), mode="bicubic", antialias=True)` for bytes on a CPU."""
    across = _resize_rows(pixels.transpose(1, 0, 2), width)  # columns first, as in torch
    return _resize_rows(across.transpose(1, 0, 2), height)


def _resize_rows(pixels: UInt8[np.ndarray, "rows columns channels"], size: int) -> UInt8[np.ndarray, "size columns channels"]:
    if size == len(pixels):
        return pixels
    flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    resized = np.empty((size, flat.shape[1]), np.uint8)
    for new, old, weights in _bands(len(pixels), size):
        sums = weights @ flat[old].astype(np.float64)  # exact: bytes times weights of at most 22 fractional bits
        resized[new] = np.clip(np.floor(sums + 0.5), 0, 255)
    return resized.reshape(size, *pixels.shape[1:])


@lru_cache(maxsize=64)
def _bands(size: int, new_size: int) -> list[_Band]:
    """Returns blocks of new rows, the old rows that each block depends on, and the weights."""
    first, weights = _weights(size, new_size)
    bands = []
    for start in range(0, new_size, _BLOCK):
        new = slice(start, min(start + _BLOCK, new_size))
        places = first[new] - first[start] + np.arange(len(weights))[:, None]
        band = np.zeros((new.stop - start, places[-1, -1] + 1))
        band[np.arange(len(band)), places] = weights[:, new]
        band = band[:, : size - first[start]]  # weights beyond the edge are 0
        bands.append((new, slice(first[start], first[start] + band.shape[1]), band))
    return bands


def _weights(size: int, new_size: int) -> tuple[np.ndarray, Float64[np.ndarray, "K new_size"]]:
    """Returns the first old row that each new row depends on, and the weights of that row and the rows after it.

    The weights sum to 1 before rounding. The largest weight determines the number of fractional bits they are rounded to.
    """
    scale = size / new_size
    stretch = max(scale, 1.0)
    centres = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centres - _SUPPORT * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + _SUPPORT * stretch + 0.5).astype(np.int64), size)
    rows = first + np.arange(2 * int(np.ceil(_SUPPORT * stretch)) + 1)[:, None]
    weights = np.where(rows < last, _bicubic((rows - centres + 0.5) * (1.0 / stretch)), 0.0)
    weights /= weights.sum(axis=0)

    bits = 0
    while bits < _MAX_BITS and int(0.5 + weights.max() * 2.0 ** (bits + 1)) < 2**15:
        bits += 1
    scaled = weights * 2.0**bits
    return first, np.trunc(scaled + np.copysign(0.5, scaled)) / 2.0**bits


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Evaluates Keys' cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
