"""What a detection data set says of one image, in whatever format it came."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vitar_jax.episodes.regions import Box, Size, clip, to_frame
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image

SLACK = 1.0  # pixels by which a box may reach beyond its image: formats round, and count from 0 or from 1


@dataclass(frozen=True)
class Annotated:
    """One image as its annotations describe it, before anybody opened it.

    Attributes:
      where: file and record, for errors.
      objects: (class name, box) pairs, in frame "original" or "normalized"; none: nothing is there to be found.
      size: (width, height) as the annotations say it, if they do.
    """

    where: str
    image: Path
    objects: tuple[tuple[str, Box], ...]
    size: Size | None = None


@dataclass(frozen=True)
class Detection:
    """All that was found on an image, whose file has this hash.

    Attributes:
      size: (width, height).
      boxes: by class name, in frame "original", both in order; a class without any is not there.
    """

    image: Path
    sha256: str
    size: Size
    boxes: dict[str, tuple[Box, ...]]


Found = tuple[str, Box] | DataError


def annotated(where: str, image: Path, found: Sequence[Found], size: Size | None = None) -> list[Annotated | DataError]:
    """An image with its objects; or what is wrong with some of them, since then it is not known what the image shows."""
    objects = tuple(thing for thing in found if not isinstance(thing, DataError))
    errors: list[Annotated | DataError] = [thing for thing in found if isinstance(thing, DataError)]
    return errors or [Annotated(where, image, objects, size)]


def admit(record: Annotated) -> Detection:
    """The annotations of an image that is there, and that they fit.

    Raises:
      DataError: the image cannot be read, is of another size than is said, or does not hold a box; the record is named.
    """
    try:
        size = open_image(record.image).size
    except ImageError as error:
        raise DataError(f"{record.where}: {error}") from error
    if record.size not in (None, size):
        raise DataError(f"{record.where}: the annotations are of {record.size} pixels, {record.image} has {size}")
    boxes: dict[str, list[Box]] = {}
    for name, box in record.objects:
        try:
            box = to_frame(box, "original", size, size)
            inside = clip(box, size)
            rounded = Box(*(round(edge, 2) for edge in inside.xyxy), frame="original")  # shares of sides are not exact
        except ValueError as error:
            raise DataError(f"{record.where}: {name}: {error}") from error
        if max(abs(a - b) for a, b in zip(box.xyxy, inside.xyxy, strict=True)) > SLACK:
            raise DataError(f"{record.where}: {name}: box {box.xyxy} reaches beyond the image, which has {size} pixels")
        name = " ".join(name.replace("_", " ").split())  # as it is written in a sentence
        boxes.setdefault(name, []).append(rounded)
    in_order = {name: tuple(sorted(boxes[name], key=lambda box: box.xyxy)) for name in sorted(boxes)}
    with record.image.open("rb") as file:
        return Detection(record.image, hashlib.file_digest(file, "sha256").hexdigest(), size, in_order)


def image_files(directory: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, in order.

    Raises:
      DataError: there is no such folder.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: there is no such folder of images")
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.startswith("."))


def class_names(file: Path) -> dict[int, str]:
    """Names by number, of a text file (a name a line, from 0 on) or of YAML with `names`, a list or a mapping.

    Raises:
      DataError: the file cannot be read as either.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() in (".yaml", ".yml"):
            names = yaml.safe_load(text)["names"]
        else:
            names = [line.strip() for line in text.rstrip().splitlines()]
        if not isinstance(names, list | dict):
            raise TypeError(f"names are {names!r}")
        numbered = names if isinstance(names, dict) else dict(enumerate(names))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as names of classes ({error})") from error
    for number, name in numbered.items():
        if not isinstance(number, int) or not isinstance(name, str) or not name.strip():
            raise DataError(f"{file}: class {number!r} is called {name!r}; numbers have names")
    return numbered
