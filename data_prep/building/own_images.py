"""The images of a user's own questions. Each is read once and kept as PNG, without the metadata of its file, for the build."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.reading.burned_in import has_text
from data_prep.reading.identifiers import identifiers, patient_of
from data_prep.reading.pixels import png_of
from vitar_jax.episodes.regions import Size
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.processing.sources import image_name, open_source, split_frame
from vitar_jax.runtime.user_errors import LONGEST_PATH


@dataclass(frozen=True)
class OwnImage:
    """An image and what its file says about the patient.

    Attributes:
      png: The pixels, as a PNG file in the work folder.
      size: (width, height) in pixels.
      has_text: Whether the image seems to have text near its border.
      patient: PatientID of a DICOM file, or an empty string.
      identifiers: Keyword of each identifying value in the header of a DICOM file.
    """

    png: Path
    size: Size
    has_text: bool
    patient: str
    identifiers: Mapping[str, str]


class OwnImages:
    """The images that have been read, by file. Keeps the error of an image that cannot be read, too."""

    def __init__(self, work: Path):
        self._work = work
        self._read: dict[str, OwnImage | ImageError] = {}

    def read(self, path: str) -> OwnImage:
        """Returns an image, whose file is opened at the first call only.

        Raises:
          ImageError: If the image cannot be read.
        """
        file = os.path.realpath(path)
        if file not in self._read:
            try:
                self._read[file] = self._store(path)
            except ImageError as error:
                self._read[file] = error
        found = self._read[file]
        if isinstance(found, ImageError):
            raise found
        return found

    def size_of(self, path: str) -> Size:
        """Returns (width, height) of an image in pixels. Raises ImageError."""
        return self.read(path).size

    def _store(self, path: str) -> OwnImage:
        content = _content(path)
        image = open_image(content, name=image_name(path))
        self._work.mkdir(parents=True, exist_ok=True)
        png = self._work / f"{len(self._read)}.png"
        png.write_bytes(png_of(image))
        return OwnImage(png, image.size, has_text(image), patient_of(content), identifiers(content))


def _content(path: str) -> bytes:
    try:
        with open_source(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise ImageError(f"{path[:LONGEST_PATH]}: file does not exist") from None
    except OSError as error:
        raise ImageError(f"{path[:LONGEST_PATH]}: cannot be read ({error.strerror})") from error
    if split_frame(path)[0].lower().endswith(".dcm") and content[128:132] != b"DICM":
        return bytes(128) + b"DICM" + content  # bytes alone have no suffix that says what they are
    return content
