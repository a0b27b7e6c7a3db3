"""Label masks: one PNG per image, with its size and name. Pixel values are class numbers; 0 is the background.

Each connected part of a class is an object, whose extent becomes its box.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data_prep.curation.detections import Annotated, class_names, image_files
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError

_TOUCHING = np.ones((3, 3))  # parts connect at corners too


def read(annotations: Path, images: Path, classes: Path) -> Iterator[Annotated | DataError]:
    """Yields each image with its mask, or a DataError for each mask or image that is malformed or lacks its counterpart.

    Raises:
      DataError: If a folder or the class names cannot be read, or two images share a name.
    """
    names = class_names(classes)
    by_name: dict[Path, Path] = {}
    for image in image_files(images):
        name = image.relative_to(images).with_suffix("")
        if name in by_name:
            raise DataError(f"{image} and {by_name[name]} share a name; cannot tell which one the mask belongs to")
        by_name[name] = image
    masks = [path for path in image_files(annotations) if path.suffix.lower() == ".png"]
    for mask in masks:
        image = by_name.pop(mask.relative_to(annotations).with_suffix(""), None)
        try:
            if image is None:
                raise DataError(f"{mask}: no image of this name in {images}")
            yield _annotated(mask, image, names)
        except DataError as error:
            yield error
    for image in by_name.values():
        yield DataError(f"{image}: no mask of this name in {annotations}")


def _annotated(mask: Path, image: Path, names: Mapping[int, str]) -> Annotated:
    try:
        with Image.open(mask, formats=("PNG",)) as opened:
            values = np.asarray(opened)
    except Exception as error:  # Pillow raises many types on damaged files
        raise DataError(f"{mask}: cannot be read as PNG ({error!r})") from error
    if values.ndim != 2:
        raise DataError(f"{mask}: got a colour image, expected one value per pixel")
    objects = []
    for value in np.unique(values[values != 0]).tolist():
        if int(value) not in names:
            raise DataError(f"{mask}: got value {int(value)}, expected 0 or a named class ({', '.join(map(str, names))})")
        parts, _ = ndimage.label(values == value, _TOUCHING)  # type: ignore[misc]
        for down, across in ndimage.find_objects(parts):
            objects.append((names[int(value)], Box(across.start, down.start, across.stop, down.stop, "original")))
    return Annotated(str(mask), image, tuple(objects), (values.shape[1], values.shape[0]))
