"""YOLO: one text file per image and one line per object, in shares of the image's width and height.

The line `0 0.5 0.25 0.2 0.1` is an object of class 0, from 40 to 60 % of the width and from 20 to 30 % of the height. A sixth
number is a detector's confidence. A class and three or more points (x, y) are a polygon, whose extent is the box. An image with
an empty text file shows no object, and so does one without a text file, unless text files lack their images.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.curation.detections import Annotated, Found, annotated, class_names, whole_number
from data_prep.curation.files import Ignored, paired, text_of
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError


def read(
    annotations: Path, images: Path, classes: Path, output: Path | None = None
) -> Iterator[Annotated | Ignored | DataError]:
    """Yields each image with the text file of the same name, or a DataError for each malformed line or file without an image.

    Yields Ignored for text files without an image and without a line of numbers, such as class names, and for other files.
    Skips pictures below `output`, which an earlier run wrote.

    Raises:
      DataError: If a folder or the class names cannot be read, or two images share a name.
    """
    names = class_names(classes)
    found = paired(images, annotations, ".txt", output)
    yield from map(Ignored, found.others)
    unmatched = []
    for file in found.unmatched:
        if file.resolve() == classes.resolve() or not _is_label(file):
            yield Ignored(file)
        else:
            unmatched.append(file)
            yield DataError(f"{file}: no image of this name in {images}")
    for image, file in found.pairs:
        try:
            if file is None and unmatched:
                named = f"{len(unmatched)} label files have no image, such as {unmatched[0]}"
                raise DataError(f"{image}: has no label file, but {named}")
            lines = text_of(file).splitlines() if file else []
        except DataError as error:
            yield error
            continue
        objects = [_object(line, names, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
        yield from annotated(str(file or image), image, objects)


def _is_label(file: Path) -> bool:
    """Returns whether a text file is empty or has a line of five or more numbers."""
    try:
        lines = [line.split() for line in text_of(file).splitlines() if line.strip()]
        return not lines or any(len(line) >= 5 and all(map(_is_number, line)) for line in lines)
    except DataError:
        return True


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _object(line: str, names: Mapping[int, str], where: str) -> Found:
    try:
        number, *rest = line.split()
        if (known := whole_number(number)) is None:
            raise ValueError("expected a whole number as class")
        name = names[known]
        values = [float(value) for value in rest]
        if not all(map(math.isfinite, values)):
            raise ValueError("expected finite numbers")
        if len(values) in (4, 5):
            x, y, width, height, confidence = [*values, 1.0][:5]
            if not 0 <= confidence <= 1:
                raise ValueError(f"got confidence {confidence}, expected 0 to 1")
            return name, Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, "normalized")
        if len(values) < 6 or len(values) % 2:
            raise ValueError(f"got {len(values)} numbers after the class")
        across, down = values[::2], values[1::2]
        return name, Box(min(across), min(down), max(across), max(down), "normalized")
    except (LookupError, ValueError) as error:
        form = "centre x, y, width, height from 0 to 1, perhaps a confidence; or the points of a polygon"
        return DataError(f"{where}: got {line!r}, expected a known class and its {form} ({error!r})")
