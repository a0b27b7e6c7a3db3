"""The annotations of one image, in the form that all formats are read into, and the checks that they fit the image."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vitar_jax.episodes.regions import Box, Size, clip, to_frame
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image

SLACK = 1.0  # pixels by which a box may exceed its image, because formats round and count from 0 or from 1


@dataclass(frozen=True)
class Annotated:
    """One image as its annotations describe it. The image has not been opened.

    Attributes:
      where: File and record, for error messages.
      objects: (class name, box) pairs, in frame "original" or "normalized". Empty if the image shows no object.
      size: (width, height) according to the annotations, or None if they do not give it.
    """

    where: str
    image: Path
    objects: tuple[tuple[str, Box], ...]
    size: Size | None = None


@dataclass(frozen=True)
class Detection:
    """The objects on one image, checked against the image.

    Attributes:
      sha256: Hash of the image file.
      size: (width, height) in pixels.
      boxes: Boxes by class name, in frame "original"; names and boxes are sorted. Absent classes have no entry.
    """

    image: Path
    sha256: str
    size: Size
    boxes: dict[str, tuple[Box, ...]]


Found = tuple[str, Box] | DataError


def annotated(where: str, image: Path, found: Sequence[Found], size: Size | None = None) -> list[Annotated | DataError]:
    """Returns the image with its objects, or only the errors if an object is malformed: the objects are then incomplete."""
    objects = tuple(thing for thing in found if not isinstance(thing, DataError))
    errors: list[Annotated | DataError] = [thing for thing in found if isinstance(thing, DataError)]
    return errors or [Annotated(where, image, objects, size)]


def admit(record: Annotated) -> Detection:
    """Opens the image and checks its annotations against it.

    Raises:
      DataError: If the image cannot be read, its size differs from the annotated one, or a box exceeds it. Names the record.
    """
    try:
        size = open_image(record.image).size
    except ImageError as error:
        raise DataError(f"{record.where}: {error}") from error
    if record.size not in (None, size):
        raise DataError(f"{record.where}: got annotations for size {record.size}, but {record.image} has size {size}")
    boxes: dict[str, list[Box]] = {}
    for name, box in record.objects:
        try:
            box = to_frame(box, "original", size, size)
            inside = clip(box, size)
            rounded = Box(*(round(edge, 2) for edge in inside.xyxy), frame="original")  # normalized boxes are inexact
        except ValueError as error:
            raise DataError(f"{record.where}: {name}: {error}") from error
        if max(abs(a - b) for a, b in zip(box.xyxy, inside.xyxy, strict=True)) > SLACK:
            raise DataError(f"{record.where}: {name}: got box {box.xyxy}, expected one within the image of size {size}")
        name = " ".join(name.replace("_", " ").split())  # as in a sentence
        boxes.setdefault(name, []).append(rounded)
    in_order = {name: tuple(sorted(boxes[name], key=lambda box: box.xyxy)) for name in sorted(boxes)}
    with record.image.open("rb") as file:
        return Detection(record.image, hashlib.file_digest(file, "sha256").hexdigest(), size, in_order)


def image_files(directory: Path) -> Iterator[Path]:
    """Returns the files of a folder and its subfolders, sorted by path. Skips hidden files.

    Raises:
      DataError: If the folder does not exist.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.startswith("."))


def class_names(file: Path) -> dict[int, str]:
    """Reads class names by number, from a text file (one name per line, from 0) or from YAML with `names` (list or mapping).

    Raises:
      DataError: If the file cannot be read as either.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() in (".yaml", ".yml"):
            names = yaml.safe_load(text)["names"]
        else:
            names = [line.strip() for line in text.rstrip().splitlines()]
        if not isinstance(names, list | dict):
            raise TypeError(f"names: got {names!r}, expected a list or mapping")
        numbered = names if isinstance(names, dict) else dict(enumerate(names))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as class names ({error})") from error
    for number, name in numbered.items():
        if not isinstance(number, int) or not isinstance(name, str) or not name.strip():
            raise DataError(f"{file}: got class number {number!r} with name {name!r}, expected a whole number and text")
    return numbered
