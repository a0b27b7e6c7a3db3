"""Label masks: one PNG per image, with its size and name. Pixel values are class numbers; 0 is the background.

In a data set with a single class, the class may also be 255. Each connected part of a class is an object, whose extent becomes
its box, or is kept as a mask.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data_prep.curation.detections import Annotated, class_names
from data_prep.curation.files import Ignored, paired
from vitar_jax.episodes.regions import Box, Mask
from vitar_jax.errors import DataError

WHITE = 255
_TOUCHING = np.ones((3, 3))  # parts connect at corners too


def read(
    annotations: Path, images: Path, classes: Path, output: Path | None = None, *, outlines: bool = False
) -> Iterator[Annotated | Ignored | DataError]:
    """Yields each image with its mask, or a DataError for each mask or image that is malformed or lacks its counterpart.

    Skips pictures below `output`, which an earlier run wrote.

    Args:
      outlines: Whether objects are masks instead of boxes.

    Raises:
      DataError: If a folder or the class names cannot be read, two images share a name, or a class is 255 in one mask and its
        own number in another.
    """
    names = class_names(classes)
    found = paired(images, annotations, ".png", output)
    yield from map(Ignored, found.others)
    yield from (DataError(f"{mask}: no image of this name in {images}") for mask in found.unmatched)
    foregrounds: dict[int, Path] = {}  # first mask with each value
    for image, mask in found.pairs:
        try:
            if mask is None:
                raise DataError(f"{image}: no mask of this name in {annotations}")
            values = _values(mask)
            for value in set(np.unique(values).tolist()) - {0}:
                foregrounds.setdefault(value, mask)
            yield _annotated(mask, image, values, names, outlines)
        except DataError as error:
            yield error
    if WHITE not in names and WHITE in foregrounds and (own := _only(names)) in foregrounds:
        first, second = foregrounds[WHITE], foregrounds[own]
        raise DataError(f"{first}: got value {WHITE}, but {second} has value {own}; cannot tell which one is {names[own]}")


def _only(names: Mapping[int, str]) -> int:
    """Returns the number of the only class, or 0 if there are several."""
    own = set(names) - {0}
    return own.pop() if len(own) == 1 else 0


def _values(mask: Path) -> np.ndarray:
    """Returns the class number of each pixel, of shape (height, width)."""
    try:
        with Image.open(mask, formats=("PNG",)) as opened:
            values = np.asarray(opened)
            palette = np.reshape(opened.getpalette() or [], (-1, 3)) if opened.mode == "P" else None
    except Exception as error:  # Pillow raises many types on damaged files
        raise DataError(f"{mask}: cannot be read as PNG ({error!r})") from error
    if palette is not None and palette[:1].any() and not palette[(used := np.unique(values))[used < len(palette)]].any(1).all():
        raise DataError(f"{mask}: got a palette in which 0 is not black but another value is, expected the background at 0")
    if values.ndim == 3:  # grey in two to four channels is one value per pixel
        colours, alpha = (values[..., :-1], values[..., -1:]) if values.shape[2] in (2, 4) else (values, None)
        if (colours != colours[..., :1]).any() or (alpha is not None and (alpha != WHITE).any()):
            raise DataError(f"{mask}: got a colour image, expected one value per pixel: the number of its class")
        values = colours[..., 0]
    return values.astype(np.int32)


def _annotated(mask: Path, image: Path, values: np.ndarray, names: Mapping[int, str], outlines: bool) -> Annotated:
    if WHITE not in names and (own := _only(names)) and np.isin(values, (0, WHITE)).all():
        values = np.where(values == WHITE, own, 0)
    objects = []
    for value in np.unique(values[values != 0]).tolist():
        if value not in names:
            raise DataError(f"{mask}: got value {value}, expected 0 or a named class ({', '.join(map(str, names))})")
        parts, _ = ndimage.label(values == value, _TOUCHING)  # type: ignore[misc]
        for number, (down, across) in enumerate(ndimage.find_objects(parts), start=1):
            box = Box(across.start, down.start, across.stop, down.stop, "original")
            objects.append((names[value], Mask.of(parts == number, "original") if outlines else box))
    return Annotated(str(mask), image, tuple(objects), (values.shape[1], values.shape[0]))
