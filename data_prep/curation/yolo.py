"""YOLO: one text file per image and one line per object: class, centre and size, as shares of the image's width and height.

The line `0 0.5 0.25 0.2 0.1` is an object of class 0, from 40 to 60 % of the width and from 20 to 30 % of the height. An image
without a text file shows no object.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.curation.detections import Annotated, Found, annotated, class_names, image_files
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError


def read(annotations: Path, images: Path, classes: Path) -> Iterator[Annotated | DataError]:
    """Yields each image with the text file of the same name, or a DataError for each malformed line or file without an image.

    Raises:
      DataError: If a folder or the class names cannot be read, or two images share a name.
    """
    names = class_names(classes)
    if not annotations.is_dir():
        raise DataError(f"{annotations}: no such folder")
    left = {file.relative_to(annotations).with_suffix(""): file for file in sorted(annotations.rglob("*.txt"))}
    seen: set[Path] = set()
    for image in image_files(images):
        name = image.relative_to(images).with_suffix("")
        file = left.pop(name, None)
        if name in seen:
            raise DataError(f"{image} and another image share a name; cannot tell which one {annotations / name}.txt describes")
        seen.add(name)
        try:
            lines = file.read_text(encoding="utf-8").splitlines() if file else []
        except (OSError, UnicodeError) as error:
            yield DataError(f"{file}: cannot be read ({error})")
            continue
        found = [_object(line, names, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
        yield from annotated(str(file or image), image, found)
    for file in left.values():
        if file.resolve() != classes.resolve():
            yield DataError(f"{file}: no image of this name in {images}")


def _object(line: str, names: Mapping[int, str], where: str) -> Found:
    try:
        number, x, y, width, height = line.split()
        name = names[int(number)]
        left, top = float(x) - float(width) / 2, float(y) - float(height) / 2
        return name, Box(left, top, left + float(width), top + float(height), "normalized")
    except (LookupError, ValueError) as error:
        return DataError(f"{where}: got {line!r}, expected a known class, centre x, y, width, height ({error!r})")
