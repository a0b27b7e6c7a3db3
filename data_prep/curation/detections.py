"""The annotations of one image, in the form that all formats are read into, and the checks that they fit the image."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.curation.files import text_of
from data_prep.reading.identifiers import held_by, identifiers
from vitar_jax.episodes.regions import Box, Mask, Region, Size, Unit, bounding_box, declared, inside
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image, pixels_sha256


@dataclass(frozen=True)
class Annotated:
    """One image as its annotations describe it. The image has not been opened.

    Attributes:
      where: File and record, for error messages.
      objects: (class name, region) pairs, boxes in frame "original" or "normalized", or masks in frame "original". Empty if the
        image shows no object.
      size: (width, height) according to the annotations, or None if they do not give it.
    """

    where: str
    image: Path
    objects: tuple[tuple[str, Region], ...]
    size: Size | None = None


@dataclass(frozen=True)
class Detection:
    """The objects on one image, checked against the image.

    Attributes:
      sha256: Hash of the image's pixels.
      size: (width, height) in pixels.
      boxes: Boxes by class name, in frame "original"; names and boxes are sorted. Absent classes have no entry.
      masks: Class name and mask of each object that was annotated by one, in the order of the boxes.
    """

    image: Path
    sha256: str
    size: Size
    boxes: dict[str, tuple[Box, ...]]
    masks: tuple[tuple[str, Mask], ...] = ()


Found = tuple[str, Region] | DataError


def annotated(where: str, image: Path, found: Sequence[Found], size: Size | None = None) -> list[Annotated | DataError]:
    """Returns the image with its objects, or only the errors if an object is malformed: the objects are then incomplete."""
    objects = tuple(thing for thing in found if not isinstance(thing, DataError))
    errors: list[Annotated | DataError] = [thing for thing in found if isinstance(thing, DataError)]
    return errors or [Annotated(where, image, objects, size)]


def admit(record: Annotated, unit: Unit = "") -> Detection:
    """Opens the image and checks its annotations against it.

    Args:
      unit: Unit of the boxes (see `regions.declared`), unless the format implies it.

    Raises:
      DataError: If the image cannot be read or has another size than annotated, a box exceeds it or has another unit, or a
        class name repeats an identifier from its DICOM header. Names the record.
    """
    try:
        image = open_image(record.image)
    except ImageError as error:
        raise DataError(f"{record.where}: {error}") from error
    if record.size not in (None, image.size):
        raise DataError(f"{record.where}: got annotations for size {record.size}, but {record.image} has size {image.size}")
    secrets = identifiers(record.image)
    boxes: dict[str, list[Box]] = {}
    masks: list[tuple[str, Mask]] = []
    for name, region in record.objects:
        if keyword := held_by(name, secrets):
            raise DataError(f"{record.where}: a class name repeats the {keyword} of its image")
        try:
            box = inside(declared(bounding_box(region), unit), image.size)
            rounded = Box(*(round(edge, 2) for edge in box.xyxy), frame="original")  # normalized boxes are inexact
        except ValueError as error:
            raise DataError(f"{record.where}: {name}: {error}") from error
        name = " ".join(name.replace("_", " ").split())  # as in a sentence
        boxes.setdefault(name, []).append(rounded)
        if isinstance(region, Mask):
            masks.append((name, region))
    masks.sort(key=lambda one: (one[0], one[1].box.xyxy))
    in_order = {name: tuple(sorted(boxes[name], key=lambda box: box.xyxy)) for name in sorted(boxes)}
    return Detection(record.image, pixels_sha256(image.convert("RGB")), image.size, in_order, tuple(masks))


def whole_number(value: Any) -> int | None:
    """Returns a whole number, given as number or text such as "3", "003" or "3.0". Returns None for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = value.strip() if isinstance(value, str) else repr(value)
    return int(text.partition(".")[0]) if re.fullmatch(r"-?[0-9]{1,100}(\.0*)?", text) else None


def class_names(file: Path) -> dict[int, str]:
    """Reads class names by number, from a text file (one name per line, from 0) or from YAML with `names` (list or mapping).

    Raises:
      DataError: If the file cannot be read as either.
    """
    text = text_of(file)
    try:
        if file.suffix.lower() in (".yaml", ".yml"):
            names = yaml.safe_load(text)["names"]
        else:
            names = [line.strip() for line in text.rstrip().splitlines()]
        if not isinstance(names, list | dict):
            raise TypeError(f"names: got {names!r}, expected a list or mapping")
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as class names ({error})") from error
    numbered: dict[int, str] = {}
    for key, name in names.items() if isinstance(names, dict) else enumerate(names):
        number = whole_number(key)
        if number is None or number in numbered or not isinstance(name, str) or not name.strip():
            raise DataError(f"{file}: got class number {key!r} with name {name!r}, expected a whole number, once, and text")
        numbered[number] = name.strip()
    return numbered
