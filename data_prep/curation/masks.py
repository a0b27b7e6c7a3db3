"""Label masks: one PNG an image, of its size and name, whose values are classes; 0 is the background.

Each connected part of a class is an object, and its extent the box.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data_prep.curation.detections import Annotated, class_names, image_files
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError

_TOUCHING = np.ones((3, 3))  # corners too


def read(annotations: Path, images: Path, classes: Path) -> Iterator[Annotated | DataError]:
    """The images of a folder with their masks of another, or in the place of one what is wrong with its mask.

    Raises:
      DataError: a folder or the names of the classes cannot be read, or two images have one name.
    """
    names = class_names(classes)
    by_name: dict[Path, Path] = {}
    for image in image_files(images):
        name = image.relative_to(images).with_suffix("")
        if name in by_name:
            raise DataError(f"{image}: {by_name[name]} has this name too, the mask is of which?")
        by_name[name] = image
    masks = [path for path in image_files(annotations) if path.suffix.lower() == ".png"]
    for mask in masks:
        image = by_name.pop(mask.relative_to(annotations).with_suffix(""), None)
        try:
            if image is None:
                raise DataError(f"{mask}: there is no image of this name in {images}")
            yield _annotated(mask, image, names)
        except DataError as error:
            yield error
    for image in by_name.values():
        yield DataError(f"{image}: there is no mask of this name in {annotations}")


def _annotated(mask: Path, image: Path, names: Mapping[int, str]) -> Annotated:
    try:
        with Image.open(mask, formats=("PNG",)) as opened:
            values = np.asarray(opened)
    except Exception as error:  # damaged files break in any way
        raise DataError(f"{mask}: cannot be read as PNG ({error!r})") from error
    if values.ndim != 2:
        raise DataError(f"{mask}: is a picture in colour, it must have one value a pixel")
    objects = []
    for value in np.unique(values[values != 0]).tolist():
        if int(value) not in names:
            raise DataError(f"{mask}: value {int(value)} has no name; named are {', '.join(map(str, names))}")
        parts, _ = ndimage.label(values == value, _TOUCHING)  # type: ignore[misc]
        for down, across in ndimage.find_objects(parts):
            objects.append((names[int(value)], Box(across.start, down.start, across.stop, down.stop, "original")))
    return Annotated(str(mask), image, tuple(objects), (values.shape[1], values.shape[0]))
