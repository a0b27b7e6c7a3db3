"""The files of a detection data set: which of them are images, and which annotation belongs to which image.

Annotation tools leave other files beside images and labels, such as lists, class names, settings and thumbnails.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitar_jax.data.paths import nfc
from vitar_jax.errors import DataError
from vitar_jax.processing.sources import is_dicom

IMAGE_SUFFIXES = frozenset(
    ".bmp .dcm .dib .dicom .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
_LAYOUT = ("images", "labels")  # an image DATA/train/images/a.png has the label DATA/train/labels/a.txt
_THUMBNAIL = re.compile(r"(^|[^a-z])thumb(nail)?s?([^a-z]|$)|^@eadir$", re.IGNORECASE)


@dataclass(frozen=True)
class Ignored:
    """A file that is neither an image nor an annotation."""

    file: Path


@dataclass(frozen=True)
class Pairs:
    """Images with their annotation files.

    Attributes:
      pairs: Each image with its annotation file, or None.
      unmatched: Annotation files without an image.
      others: Further files, such as thumbnails.
    """

    pairs: list[tuple[Path, Path | None]]
    unmatched: list[Path]
    others: list[Path]


def paired(images: Path, annotations: Path, suffix: str, output: Path | None = None) -> Pairs:
    """Pairs images with the files in `annotations` that have this suffix and the image's name, in any layout of subfolders.

    The comparison ignores folders called images and labels: DATA/images/a.png belongs to DATA/labels/a.txt. A thumbnail without
    an annotation file is no image. (With one, it may be an image of a thumb.)

    Args:
      output: Folder of an earlier run, whose pictures are ignored.

    Raises:
      DataError: If a folder does not exist, or two images or two annotation files share a name.
    """
    labels: dict[tuple[str, ...], Path] = {}
    for file in files_in(annotations):
        if file.suffix.lower() == suffix:
            _add(labels, _key(file, annotations), file)
    skipped = [output.resolve()] if output else []
    if suffix in IMAGE_SUFFIXES and annotations.resolve() != images.resolve():
        skipped.append(annotations.resolve())  # masks are no images
    found: dict[tuple[str, ...], Path] = {}
    others = []
    for file in files_in(images):
        if any(file.resolve().is_relative_to(folder) for folder in skipped):
            continue
        if _is_image(file) and (_key(file, images) in labels or not _is_thumbnail(file, images)):
            _add(found, _key(file, images), file)
        elif file.suffix.lower() != suffix:
            others.append(file)
    pairs = [(image, labels.pop(name, None)) for name, image in found.items()]
    return Pairs(pairs, list(labels.values()), others)


def files_in(directory: Path) -> Sequence[Path]:
    """Returns the files of a folder and its subfolders, sorted by path. Skips hidden files and folders.

    Raises:
      DataError: If the folder does not exist.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts)]


def text_of(file: Path) -> str:
    """Reads a text file in UTF-8, with or without byte order mark, or in UTF-16 with one.

    Raises:
      DataError: If the file cannot be read.
    """
    try:
        content = file.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if marked else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _is_image(file: Path) -> bool:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with file.open("rb") as opened:
            return is_dicom(opened)
    except OSError:
        return False


def _is_thumbnail(file: Path, directory: Path) -> bool:
    return any(_THUMBNAIL.search(part) for part in file.relative_to(directory).parts)


def _key(file: Path, directory: Path) -> tuple[str, ...]:
    """Returns the folders and the name that an image and its annotation share."""
    *folders, name = file.relative_to(directory).parts
    known = file.suffix.lower() in IMAGE_SUFFIXES or file.suffix.lower() == ".txt"
    shared = [folder for folder in folders if folder.lower() not in _LAYOUT]
    return tuple(map(nfc, (*shared, Path(name).stem if known else name)))


def _add(found: dict[tuple[str, ...], Path], name: tuple[str, ...], file: Path) -> None:
    if other := found.get(name):
        raise DataError(f"{file} and {other} share a name; cannot tell which annotation belongs to which image")
    found[name] = file
