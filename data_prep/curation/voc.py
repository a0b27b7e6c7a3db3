"""Pascal VOC: one XML file per image. Corners are pixels counted from 1, and both corner pixels belong to the box.

Images are searched in the XML file's subfolder, too.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data_prep.curation.detections import Annotated, Found, annotated, whole_number
from data_prep.curation.files import files_in
from vitar_jax.data.paths import find_file
from vitar_jax.episodes.regions import Box, Size, Unit
from vitar_jax.errors import DataError


def read(annotations: Path, images: Path, unit: Unit = "") -> Iterator[Annotated | DataError]:
    """Yields the images that a folder of XML files describes, or a DataError for each malformed record.

    Args:
      unit: Unit of the corners. Only pixels are counted from 1.

    Raises:
      DataError: If the folder does not exist or contains no XML file.
    """
    files = [file for file in files_in(annotations) if file.suffix.lower() == ".xml"]
    if not files:
        raise DataError(f"{annotations}: no XML files found")
    for file in files:
        try:
            below = images / file.relative_to(annotations).parent
            yield from _annotated(file, below, images, first=0 if unit in ("normalized", "1000") else 1)
        except DataError as error:
            yield error


def _annotated(file: Path, below: Path, images: Path, first: int) -> list[Annotated | DataError]:
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{file}: cannot be read as XML ({error})") from error
    name = _text(root, "filename", str(file)).replace("\\", "/")
    below, elsewhere = find_file(below, name), find_file(images, name)
    image = below if below.is_file() else elsewhere
    found = [_object(thing, f"{file}, object {number}", first) for number, thing in enumerate(root.findall("object"))]
    return annotated(str(file), image, found, _size(root, str(file)))


def _size(root: ElementTree.Element, where: str) -> Size | None:
    """Returns (width, height), or None if the file has no element `size`."""
    if root.find("size") is None:
        return None
    width, height = (whole_number(_text(root, f"size/{side}", where)) for side in ("width", "height"))
    if width is None or height is None:
        raise DataError(f"{where}: size: expected a whole number of pixels as width and as height")
    return width, height


def _object(thing: ElementTree.Element, where: str, first: int) -> Found:
    try:
        left, top, right, bottom = (_number(thing, f"bndbox/{corner}", where) for corner in ("xmin", "ymin", "xmax", "ymax"))
        left, top = (max(edge - first, min(edge, 0)) for edge in (left, top))  # some tools count from 0
        return _text(thing, "name", where), Box(left, top, right, bottom, "original")
    except DataError as error:
        return error
    except ValueError as error:
        return DataError(f"{where}: {error}")


def _text(element: ElementTree.Element, path: str, where: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise DataError(f"{where}: {path} is missing")
    return text


def _number(element: ElementTree.Element, path: str, where: str) -> float:
    text = _text(element, path, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {path}: got {text!r}, expected a number")
    return value
