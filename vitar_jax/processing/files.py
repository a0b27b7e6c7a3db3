"""Opens image files: decodes a path or bytes to an upright 8-bit image, or raises ImageError."""

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from absl import logging
from jaxtyping import Real
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from vitar_jax.errors import ImageError, without_pictures
from vitar_jax.processing.sources import image_name, is_dicom, open_source, split_frame
from vitar_jax.runtime.user_errors import LONGEST_PATH

if TYPE_CHECKING:
    from vitar_jax.processing.dicom import DicomFile

MAX_PIXELS = 89_478_485  # the size above which PIL warns of a decompression bomb: 256 MiB of RGB
MAX_ASPECT_RATIO = 200  # the limit in Qwen's smart_resize

# Formats decoded in process. EPS is left out, because PIL would start Ghostscript for it. JPEG includes MPO.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Formats with several frames. The other frames of a JPEG (MPO) are previews, so they are not counted.
_KNOW_FRAMES, _COUNT_FRAMES = ("PNG", "WEBP"), ("GIF", "TIFF")
_WINDOW_PERCENTILES = (1.0, 99.7)
_LONGEST_REASON = 300  # characters
_PHOTOMETRIC, _PLANAR, _BITS = 262, 284, 258  # TIFF tags

# PIL reads most deep greyscale TIFFs in which 0 is white like those in which it is black, and refuses the others.
for _key, _modes in list(TiffImagePlugin.OPEN_INFO.items()):
    if _key[1] == 1 and (_modes[0] in ("I", "F") or _modes[0].startswith("I;16")):
        TiffImagePlugin.OPEN_INFO.setdefault((_key[0], 0, *_key[2:]), _modes)


def open_image(
    source: str | Path | bytes | Image.Image,
    *,
    frame: int | None = None,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    single: bool = False,
) -> Image.Image:
    """Decodes an image and rotates it upright. The mode is 'L' for greyscale without transparency, else 'RGB'.

    Checks the size from the header, before decoding. Returns an upright PIL image in one of these modes unchanged. Renders
    DICOM with its own window, if it has one. Logs once per file which of several frames is shown, unless one is chosen.

    Args:
      source: Path, text that names an image (see `sources`), file content, or PIL image.
      frame: Index of the frame, for a DICOM, TIFF, GIF or other file with several frames (default: that of the name,
        `#frame=INDEX`, else 0).
      name: Name of the image in messages (default: its path). A file is DICOM if it has the DICOM header, or if its name has
        the suffix `.dcm`.
      max_pixels: Maximum size of a frame (width * height, pixels).
      single: Whether a file with several frames is an error, unless one is chosen.

    Raises:
      ImageError: If the file is missing, not an image, damaged, lacks the frame, has more than `max_pixels` pixels, has one
        side over 200 times the other, or has several frames and must be `single`. The message names the file. No exception of
        PIL or pydicom escapes.
    """
    if not name and isinstance(source, str | Path):
        name = image_name(source)
    file_name, marked = split_frame(name)
    chosen = marked if frame is None else frame
    name = str(name or getattr(source, "filename", "") or "an image in memory")[:LONGEST_PATH]
    try:
        if isinstance(source, Image.Image):
            return _decode(source, chosen or 0, max_pixels)
        with io.BytesIO(source) if isinstance(source, bytes) else open_source(source) as file:
            image, frames = _read(file, file_name, chosen or 0, max_pixels)
        if frames > 1 and chosen is None and single:
            raise ImageError(f"has {frames} frames, expected a single one")
        if frames > 1 and chosen is None:
            _log_first_frame(name, frames)
        return image
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError:
        raise ImageError(f"{name}: file does not exist") from None
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"{name}: not an image, or one whose kind of pixels is not read; supported formats are DICOM, {', '.join(_FORMATS)}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels: {error}") from error
    except Exception as error:  # a damaged header can raise any exception in PIL and pydicom
        raise ImageError(f"{name}: cannot be read as an image: {_reason(error)}") from error


def _read(file: BinaryIO, name: str, frame: int, max_pixels: int) -> tuple[Image.Image, int]:
    """Returns a frame of an image file, and the number of its frames."""
    if is_dicom(file) or name.lower().endswith(".dcm"):
        from vitar_jax.processing.dicom import DicomFile  # imports pydicom, which takes 0.2 s

        opened = DicomFile(file)
        return _decode(opened, frame, max_pixels), opened.frames
    with Image.open(file, formats=_FORMATS) as image:
        kind, frames = image.format, getattr(image, "n_frames", 1) if image.format in _KNOW_FRAMES else 1
        decoded = _decode(image, frame, max_pixels)
    if kind in _COUNT_FRAMES:  # by a pass over the file, which may be damaged behind the frame that is shown
        with suppress(Exception), Image.open(file, formats=_COUNT_FRAMES) as image:
            frames = getattr(image, "n_frames", 1)
    return decoded, frames


@lru_cache(maxsize=1000)
def _log_first_frame(name: str, frames: int) -> None:
    logging.warning("%s: has %d frames, shows frame 0; choose another one by %s#frame=INDEX", name, frames, name)


def _reason(error: Exception) -> str:
    text = without_pictures(repr(error))
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def _decode(opened: "Image.Image | DicomFile", frame: int, max_pixels: int) -> Image.Image:
    _check_size(opened.size, max_pixels)
    try:
        if not isinstance(opened, Image.Image):
            return upright_rgb_or_grey(opened.frame(frame))
        if frame:
            _seek(opened, frame)
            _check_size(opened.size, max_pixels)  # pages of a TIFF can differ in size
        _check_planes(opened)
        opened.load()
        return upright_rgb_or_grey(opened)
    except ImageError:
        raise
    except Exception as error:  # damaged pixels raise OSError, SyntaxError, struct.error, ..., depending on the format
        raise ImageError(f"damaged or truncated: {_reason(error)}") from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    check_shape(width, height)
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels are more than the {max_pixels} allowed")


def check_shape(width: int, height: int) -> None:
    """Raises ImageError if Qwen's processing cannot cut an image of this size into patches."""
    if min(width, height) < 1:
        raise ImageError(f"an empty image, {width}x{height} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{width}x{height} pixels, the longer side may be at most {MAX_ASPECT_RATIO} times the shorter")


def _check_planes(image: Image.Image) -> None:
    """Raises ImageError if a TIFF stores each colour by itself in more than 8 bits, which PIL decodes as noise."""
    tags = _tiff_tags(image)
    if tags.get(_PLANAR) == 2 and len(tags.get(_BITS, ())) > 1 and max(tags[_BITS]) > 8:
        bits = max(tags[_BITS])
        raise ImageError(f"a TIFF with {bits}-bit colours in separate planes, which are not read; interleave its colours")


def _tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def _seek(image: Image.Image, frame: int) -> None:
    try:
        image.seek(frame)
    except EOFError:
        raise ImageError(f"has no frame {frame}") from None


def upright_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Rotates an image upright and converts it to 'L' (greyscale without transparency) or 'RGB'.

    Returns an upright image that already has one of these modes unchanged. Converts 8-bit images (palette, CMYK, alpha) as
    Hugging Face does, and composites transparency over white. Windows deeper greyscale images ('I;16', 'I', 'F'): maps their
    1st to 99.7th percentile to 0 to 255. NaN is padding: black, and no part of the percentiles.

    Raises:
      ImageError: If the mode cannot be converted.
    """
    # PIL inverts only values of at most 8 bits.
    white_is_zero = _tiff_tags(image).get(_PHOTOMETRIC) == 0
    if _orientation(image) in (2, 3, 4, 5, 6, 7, 8):
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        return _windowed(-values if white_is_zero else values)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    try:
        return image.convert("L" if image.mode == "1" else "RGB")
    except (ValueError, OSError) as error:
        raise ImageError(f"an image of mode {image.mode!r} cannot be converted to RGB: {error}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers ignore damaged EXIF too; the pixels can still be valid
        return 1


def _windowed(values: Real[np.ndarray, "rows columns"]) -> Image.Image:
    """Maps the 1st to 99.7th percentile of the finite values to 0 to 255, as mode 'L'. A constant image becomes black."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        finite = np.zeros(1)
    values = np.nan_to_num(values, nan=finite.min(), neginf=finite.min(), posinf=finite.max())
    low, high = np.percentile(finite, _WINDOW_PERCENTILES)
    if low == high:  # a few bright pixels on a constant background
        low, high = finite.min(), finite.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8))


def pixels_sha256(image: Image.Image) -> str:
    """Returns the SHA-256 of an image's mode, size and pixels."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
