"""Texts that name an image: a path, a path with a frame (`scan.dcm#frame=12`), a data URI, or base64 text.

A frame is an index from 0: a frame of a DICOM file, a page of a TIFF file, or a frame of an animation.
"""

import base64
import binascii
import hashlib
import io
import os
import re
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from vitar_jax.errors import ImageError

_EDGE = 1 << 16  # bytes read at either end of a file
_FRAME = re.compile(r"#frame=(\d{1,9})$")
_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+[=\s]*")
_SHORTEST = 64  # characters of base64; shorter text is a path
# The first bytes of PNG, JPEG, GIF, BMP, TIFF (both orders), WEBP, JPEG 2000 (box and codestream), PPM, and a DICOM preamble.
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
_BEGINNINGS += (b"P5\n", b"P6\n", bytes(128) + b"DICM")


def split_frame(path: str) -> tuple[str, int | None]:
    """Returns the path of a file, and the frame that the text chooses, if it does."""
    found = _FRAME.search(path)
    return (path[: found.start()], int(found[1])) if found else (path, None)


def inline_content(text: str) -> bytes | None:
    """Returns the content of an image file that a data URI or base64 text holds. None means that the text is a path.

    Raises:
      ImageError: If the text is a data URI without base64, or its base64 is damaged.
    """
    if header := _DATA_URI.match(text):
        if not header[0].lower().endswith(";base64,"):
            raise ImageError("a data URI that is not in base64")
        text = unquote(text[header.end() :])
    elif not _is_base64_image(text):
        return None
    try:
        letters = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"its base64 text is damaged: {error}") from error


def _is_base64_image(text: str) -> bool:
    if len(text) < _SHORTEST:
        return False
    head = "".join(text[:400].split()).translate(str.maketrans("-_", "+/"))
    try:
        beginning = base64.b64decode(head[: min(len(head), 180) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):
        return False
    return beginning.startswith(_BEGINNINGS) and _BASE64.fullmatch(text) is not None


def is_inline(text: str) -> bool:
    """Returns whether a text holds an image itself, as a data URI or base64, instead of naming a file."""
    return _DATA_URI.match(text) is not None or _is_base64_image(text)


def image_name(image: str | Path) -> str:
    """Returns a name of an image for people and records: its path, or the hash of a text that holds the image itself."""
    text = str(image)
    return f"base64 text with SHA-256 {hashlib.sha256(text.encode()).hexdigest()}" if is_inline(text) else text


def open_source(image: str | Path) -> BinaryIO:
    """Opens the file that a text names, or the content that it holds.

    Raises:
      ImageError: If a text holds an image, but its base64 is damaged.
      OSError: If the file cannot be opened.
    """
    content = inline_content(image) if isinstance(image, str) else None
    return open(split_frame(str(image))[0], "rb") if content is None else io.BytesIO(content)


def file_digest(image: str | Path) -> str:
    """Returns a SHA-256 of an image's source: of a text that holds an image, or of a file and the frame that is chosen.

    A file counts by its size and the bytes at both ends, so that gigabytes are not read. "missing" if it cannot be read.
    """
    text = str(image)
    if is_inline(text):
        return hashlib.sha256(text.encode()).hexdigest()
    path, frame = split_frame(text)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode() + file.read(_EDGE))
            file.seek(max(size - _EDGE, 0))
            digest.update(file.read(_EDGE))
    except OSError:  # playing the sample names the file
        return "missing"
    if frame is not None:
        digest.update(f"#frame={frame}".encode())
    return digest.hexdigest()


def is_dicom(file: BinaryIO) -> bool:
    """Returns whether a file has the DICOM preamble. Leaves the file at its start."""
    head = file.read(132)
    file.seek(0)
    return head[128:] == b"DICM"
