"""Pascal VOC: one XML file per image. Corners are pixels counted from 1, and both corner pixels belong to the box."""

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from data_prep.curation.detections import Annotated, Found, annotated
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError


def read(annotations: Path, images: Path) -> Iterator[Annotated | DataError]:
    """Yields the images that a folder of XML files describes, or a DataError for each malformed record.

    Raises:
      DataError: If the folder does not exist or contains no XML file.
    """
    files = sorted(annotations.rglob("*.xml"))
    if not files:
        raise DataError(f"{annotations}: no XML files found")
    for file in files:
        try:
            yield from _annotated(file, images)
        except DataError as error:
            yield error


def _annotated(file: Path, images: Path) -> list[Annotated | DataError]:
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{file}: cannot be read as XML ({error})") from error
    image = images / _text(root, "filename", str(file))
    size = (int(_number(root, "size/width", str(file))), int(_number(root, "size/height", str(file))))
    found = [_object(thing, f"{file}, object {number}") for number, thing in enumerate(root.findall("object"))]
    return annotated(str(file), image, found, size)


def _object(thing: ElementTree.Element, where: str) -> Found:
    try:
        left, top, right, bottom = (_number(thing, f"bndbox/{corner}", where) for corner in ("xmin", "ymin", "xmax", "ymax"))
        return _text(thing, "name", where), Box(left - 1, top - 1, right, bottom, "original")
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
