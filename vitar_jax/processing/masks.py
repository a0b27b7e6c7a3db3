"""Binary masks on the host: SAM 2's input, resizing as in Sa2VA's published code, longest diameter, IoU and matching."""

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from vitar_jax.processing.files import upright_rgb_or_grey

Masks = Bool[np.ndarray, "masks height width"]


def ground_pixels(image: Image.Image, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Returns the RGB pixels of an image of any mode and size as SAM 2 reads them: a square, whatever the aspect ratio.

    Resizes with PIL's bicubic filter, as published.

    Raises:
      ImageError: If the image's mode cannot be converted.
    """
    square = upright_rgb_or_grey(image).resize((side, side), Image.Resampling.BICUBIC)  # grey pixels as one channel
    return np.asarray(square.convert("RGB"))


def nearest(mask: Bool[np.ndarray, "*N rows columns"], rows: int, columns: int) -> Bool[np.ndarray, "*N height width"]:
    """Returns masks of another size. Place i of an axis takes place floor(i * old / new), as torch's mode "nearest"."""
    down, across = (np.arange(new) * old // new for new, old in zip((rows, columns), mask.shape[-2:], strict=True))
    return mask[..., down[:, None], across]


def bilinear(maps: Float[np.ndarray, "*N rows columns"], rows: int, columns: int) -> Float[np.ndarray, "*N height width"]:
    """Returns maps of another size, in fp32, as torch's mode "bilinear": half-pixel centres, no antialiasing."""
    down, across = (_weights(new, old) for new, old in zip((rows, columns), maps.shape[-2:], strict=True))
    return down @ maps.astype(np.float32) @ across.T


def _weights(new: int, old: int) -> np.ndarray:
    """Returns the matrix [new, old] that resizes an axis."""
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, None)
    low = np.minimum(place.astype(int), old - 1)
    high = np.minimum(low + 1, old - 1)
    matrix, every = np.zeros((new, old), np.float32), np.arange(new)
    np.add.at(matrix, (every, low), 1 - (place - low))
    np.add.at(matrix, (every, high), place - low)
    return matrix


def full_size(logits: Float[np.ndarray, "*N rows columns"], side: int, height: int, width: int) -> Bool[np.ndarray, "*N h w"]:
    """Returns the masks of an image: logits resized to the `side` of SAM 2's image, then to the image's size, above 0.

    Two steps, as published; the result differs a little from that of one.
    """
    return bilinear(bilinear(logits, side, side), height, width) > 0


def longest_diameter(mask: Bool[np.ndarray, "height width"], *, rows: float = 1.0, columns: float = 1.0) -> float:
    """Returns the longest diameter of a mask: the largest distance between two outer corners of its pixels; 0 without a pixel.

    This is the maximum Feret diameter of the area that the pixels cover. That of one pixel is its diagonal.

    Args:
      rows, columns: Height and width of a pixel, in the unit of the result.
    """
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import pdist

    y = np.flatnonzero(mask.any(axis=1))
    if not len(y):
        return 0.0
    first, last = mask[y].argmax(axis=1), mask.shape[1] - mask[y, ::-1].argmax(axis=1)
    corners = [np.column_stack([x * columns, (y + down) * rows]) for x in (first, last) for down in (0, 1)]
    points = np.concatenate(corners)
    return float(pdist(points[ConvexHull(points).vertices]).max())


def iou_matrix(predicted: Masks, gold: Masks) -> Float32[np.ndarray, "predicted gold"]:
    """Returns the IoU of each pair of masks, 0 for two empty masks, rounded to float32 as published."""
    overlap = np.zeros((len(predicted), len(gold)), np.int64)
    for i, one in enumerate(predicted):  # one pair at a time: masks of a large image take megabytes each
        for j, other in enumerate(gold):
            overlap[i, j] = np.count_nonzero(one & other)
    union = predicted.sum(axis=(1, 2))[:, None] + gold.sum(axis=(1, 2)) - overlap
    return np.divide(overlap, union, out=np.zeros(overlap.shape), where=union > 0).astype(np.float32)


def best_pairs(ious: Float[np.ndarray, "predicted gold"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns of the one-to-one assignment with the largest sum of IoUs.

    Equally good assignments can find different numbers of masks. The published code takes scipy's, of the costs 1 - IoU in
    float32, and so does this function.
    """
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(1 - ious.astype(np.float32))
