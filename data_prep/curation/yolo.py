"""YOLO: one text file an image, a line an object: class, centre and size, as shares of the image's sides.

A line `0 0.5 0.25 0.2 0.1` is an object of class 0 from 40 to 60 % of the width and from 20 to 30 % of the height. An image
without a text file shows nothing.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.curation.detections import Annotated, Found, annotated, class_names, image_files
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError


def read(annotations: Path, images: Path, classes: Path) -> Iterator[Annotated | DataError]:
    """The images of a folder with their text files of another, of the same names, or in the place of one what is wrong.

    Raises:
      DataError: a folder or the names of the classes cannot be read, or two images have one name.
    """
    names = class_names(classes)
    if not annotations.is_dir():
        raise DataError(f"{annotations}: there is no such folder of labels")
    left = {file.relative_to(annotations).with_suffix(""): file for file in sorted(annotations.rglob("*.txt"))}
    seen: set[Path] = set()
    for image in image_files(images):
        name = image.relative_to(images).with_suffix("")
        file = left.pop(name, None)
        if name in seen:
            raise DataError(f"{image}: another image has this name too, {annotations / name}.txt is of which?")
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
            yield DataError(f"{file}: there is no image of this name in {images}")


def _object(line: str, names: Mapping[int, str], where: str) -> Found:
    try:
        number, x, y, width, height = line.split()
        name = names[int(number)]
        left, top = float(x) - float(width) / 2, float(y) - float(height) / 2
        return name, Box(left, top, left + float(width), top + float(height), "normalized")
    except (LookupError, ValueError) as error:
        return DataError(f"{where}: {line!r} is not a known class, centre x, y, width, height ({error!r})")
