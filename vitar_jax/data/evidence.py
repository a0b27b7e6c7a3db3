"""The pixels that an answer rests on, and their removal from an image.

Regions lie on image 0 of a sample. Images are RGB or grey, 8 bits, as `open_image` returns them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageFilter, ImageStat

from vitar_jax.episodes.regions import Mask, Region, Size, clip, to_frame
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError
from vitar_jax.processing.masks import nearest

GREY = 128
BLUR = 1 / 8  # standard deviation of the blur that removes evidence, as a share of the image's longer side

Pixels = Bool[np.ndarray, "y x"]


def reference_regions(sample: Sample) -> tuple[Region, ...]:
    """Returns the reference evidence: the masks that reasoning or answer should show, else the boxes.

    Raises:
      DataError: If the sample has neither.
    """
    return _some(sample, tuple(one.mask for one in sample.objects if one.in_reasoning or one.in_answer) or sample.boxes)


def reasoning_masks(sample: Sample) -> tuple[Region, ...]:
    """Returns the reference masks that the reasoning should show.

    Raises:
      DataError: If the sample has none.
    """
    return _some(sample, tuple(one.mask for one in sample.objects if one.in_reasoning), "mask of its reasoning")


def _some(sample: Sample, regions: tuple[Region, ...], what: str = "box or mask") -> tuple[Region, ...]:
    if not regions or not sample.images:
        raise DataError(f"sample {sample.sample_id}: has no {what if sample.images else 'image'}, which the control needs")
    return regions


def pixels_of(regions: Sequence[Region], size: Size, where: str) -> Pixels:
    """Returns the pixels that any of the regions touches, in an image of this (width, height).

    Args:
      where: Start of the error message.

    Raises:
      DataError: If a region does not fit the image, or no pixel is touched.
    """
    width, height = size
    found = np.zeros((height, width), bool)
    for region in regions:
        try:
            if isinstance(region, Mask):
                found |= _mask_pixels(region, size)
            else:
                box = clip(to_frame(region, "original", size, size), size)
                found[math.floor(box.y1) : math.ceil(box.y2), math.floor(box.x1) : math.ceil(box.x2)] = True
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
    if not found.any():
        raise DataError(f"{where}: its regions cover no pixel of the image")
    return found


def _mask_pixels(mask: Mask, size: Size) -> Pixels:
    if mask.frame == "normalized":
        return nearest(mask.array, size[1], size[0])
    if mask.shape != (size[1], size[0]):
        raise ValueError(f"got a mask of {mask.shape[1]} x {mask.shape[0]}, expected the image's {size[0]} x {size[1]}")
    return mask.array


def innermost(where: Pixels, share: float) -> Pixels:
    """Returns the share of a region that lies deepest in it, so that a smaller share is part of a larger one.

    Depth is the chessboard distance to the nearest pixel outside the region; the image ends outside.
    """
    from scipy.ndimage import distance_transform_cdt

    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    around = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    depth = np.asarray(distance_transform_cdt(np.pad(where[around], 1), "chessboard"))[1:-1, 1:-1]
    count = round(share * np.count_nonzero(where))
    deeper = np.cumsum(np.bincount(depth.ravel())[::-1])[::-1]  # number of pixels of at least each depth
    least = int(np.count_nonzero(deeper >= count)) - 1  # of the deepest `count` pixels
    kept = depth > least
    # Of the pixels of that depth, the first ones in the order of rows.
    kept.ravel()[np.flatnonzero(depth == least)[: count - np.count_nonzero(kept)]] = True
    found = np.zeros_like(where)
    found[around] = kept
    return found


def elsewhere(where: Pixels, seed: Sequence[int], name: str) -> Pixels:
    """Returns a region of the same shape and size that shares no pixel with this one, at a random place.

    If no place is inside the image, the region continues at the opposite edge.

    Args:
      seed: Seed of the place.
      name: Start of the error message.

    Raises:
      DataError: If the region is so large that it overlaps itself wherever it is moved.
    """
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    shape = where[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    (height, width), (tall, wide) = where.shape, shape.shape
    # Places inside the image, as moves down and right. Those of less than the shape's size may overlap.
    down, right = np.arange(height - tall + 1) - rows[0], np.arange(width - wide + 1) - columns[0]
    near = np.flatnonzero(abs(down) < tall), np.flatnonzero(abs(right) < wide)
    if shape.all():  # a box overlaps at all of them
        blocked = np.ones((len(near[0]), len(near[1])), bool)
    else:
        blocked = _overlap(shape, (2 * tall, 2 * wide))[np.ix_(down[near[0]], right[near[1]])] >= 0.5
    free = np.full(len(down), len(right))  # places per row
    free[near[0]] -= np.count_nonzero(blocked, axis=1)
    inside = bool(free.any())
    if not inside:
        down, right = map(np.arange, where.shape)
        near, blocked = (down, right), _overlap(where, where.shape) >= 0.5
        free = len(right) - np.count_nonzero(blocked, axis=1)
    if not free.any():
        raise DataError(f"{name}: the evidence covers {where.mean():.0%} of the image, which leaves no place elsewhere")
    # The place of a random number, counted along rows.
    upto = np.cumsum(free)
    place = np.random.default_rng(seed).integers(upto[-1])
    y = np.searchsorted(upto, place, side="right")
    row = np.ones(len(right), bool)
    if y in near[0]:
        row[near[1]] = ~blocked[np.searchsorted(near[0], y)]
    x = np.flatnonzero(row)[place - (upto[y] - free[y])]
    if not inside:
        return np.roll(where, (down[y], right[x]), (0, 1))
    found = np.zeros_like(where)
    found[rows[0] + down[y] :, columns[0] + right[x] :][:tall, :wide] = shape
    return found


def _overlap(where: Pixels, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels that a region shares with itself, moved (down, right) on a torus of this (height, width)."""
    return np.fft.irfft2(abs(np.fft.rfft2(where, size)) ** 2, size)


def painted(image: Image.Image, where: Pixels, outside: Pixels | None = None) -> Image.Image:
    """Returns the image with some pixels replaced by the mean colour of those outside a region.

    No trace of the region is left, not even in the mean. If the region is the whole image, the colour is mid-grey.

    Args:
      where: The pixels to replace.
      outside: The pixels to average (default: all others).
    """
    rest = ~where if outside is None else outside
    means = ImageStat.Stat(image, Image.fromarray(rest)).mean if rest.any() else [GREY] * len(image.getbands())
    changed = image.copy()
    changed.paste(tuple(map(round, means)), mask=Image.fromarray(where))
    return changed


def blurred_away(image: Image.Image, where: Pixels) -> Image.Image:
    """Returns the image with a region replaced by a blur of its surroundings, in which nothing of the region is left."""
    return Image.composite(_blurred(painted(image, where)), image, Image.fromarray(where))


def blurred_outside(image: Image.Image, where: Pixels) -> Image.Image:
    """Returns the image blurred, except in a region."""
    return Image.composite(image, _blurred(image), Image.fromarray(where))


def _blurred(image: Image.Image) -> Image.Image:
    """Returns the image blurred by `BLUR`. A large image is blurred at a lower resolution, which takes a tenth of the time."""
    sigma = BLUR * max(image.size)
    factor = max(1, int(sigma / 8))
    small = image.reduce(factor).filter(ImageFilter.GaussianBlur(sigma / factor))
    return small.resize(image.size, Image.Resampling.BICUBIC) if factor > 1 else small


def per_channel(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Returns the image with each channel changed by itself. Equal channels, as of X-rays in colour files, are changed once."""
    channels = image.split()
    contents = [channel.tobytes() for channel in channels]
    changed = {content: change(channel) for content, channel in dict(zip(contents, channels, strict=True)).items()}
    return Image.merge(image.mode, [changed[content] for content in contents])
