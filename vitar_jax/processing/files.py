"""Opens image files: decodes a path or bytes to an upright 8-bit image, or raises ImageError."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitar_jax.errors import ImageError
from vitar_jax.processing.dicom import DicomFile, is_dicom

MAX_PIXELS = 89_478_485  # the size above which PIL warns of a decompression bomb: 256 MiB of RGB
MAX_ASPECT_RATIO = 200  # the limit in Qwen's smart_resize

# Formats decoded in process. EPS is left out, because PIL would start Ghostscript for it. JPEG includes MPO.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_WINDOW_PERCENTILES = (1.0, 99.7)


def open_image(source: str | Path | bytes | Image.Image, *, frame: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image and rotates it upright. The mode is 'L' for greyscale without transparency, else 'RGB'.

    Checks the size from the header, before decoding. Returns an upright PIL image in one of these modes unchanged. Renders
    DICOM with its own window, if it has one.

    Args:
      source: Path, file content, or PIL image. A file is DICOM if it has the DICOM header or the suffix `.dcm`.
      frame: Index of the frame, for a DICOM, TIFF, GIF or other file with several frames.
      max_pixels: Maximum size of a frame (width * height, pixels).

    Raises:
      ImageError: If the file is missing, not an image, damaged, lacks the frame, has more than `max_pixels` pixels, or has one
        side over 200 times the other. The message names the file. No exception of PIL or pydicom escapes.
    """
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "an image in memory"
    else:
        name = "an image in memory" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, Image.Image):
            return _decode(source, frame, max_pixels)
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            if is_dicom(file) or name.lower().endswith(".dcm"):
                return _decode(DicomFile(file), frame, max_pixels)
            with Image.open(file, formats=_FORMATS) as image:
                return _decode(image, frame, max_pixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError:
        raise ImageError(f"{name}: file does not exist") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image; supported formats are DICOM, {', '.join(_FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels: {error}") from error
    except Exception as error:  # a damaged header can raise any exception in PIL and pydicom
        raise ImageError(f"{name}: cannot be read as an image: {error!r}") from error


def _decode(opened: Image.Image | DicomFile, frame: int, max_pixels: int) -> Image.Image:
    _check_size(opened.size, max_pixels)
    try:
        if isinstance(opened, DicomFile):
            return upright_rgb_or_grey(opened.frame(frame))
        if frame:
            _seek(opened, frame)
            _check_size(opened.size, max_pixels)  # pages of a TIFF can differ in size
        opened.load()
        return upright_rgb_or_grey(opened)
    except ImageError:
        raise
    except Exception as error:  # damaged pixels raise OSError, SyntaxError, struct.error, ..., depending on the format
        raise ImageError(f"damaged or truncated: {error!r}") from error


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


def _seek(image: Image.Image, frame: int) -> None:
    try:
        image.seek(frame)
    except EOFError:
        raise ImageError(f"has no frame {frame}") from None


def upright_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Rotates an image upright and converts it to 'L' (greyscale without transparency) or 'RGB'.

    Returns an upright image that already has one of these modes unchanged. Converts 8-bit images (palette, CMYK, alpha) as
    Hugging Face does, and composites transparency over white. Windows deeper greyscale images ('I;16', 'I', 'F'): maps their
    1st to 99.7th percentile to 0 to 255.

    Raises:
      ImageError: If the mode cannot be converted.
    """
    if _orientation(image) in (2, 3, 4, 5, 6, 7, 8):
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _windowed(image)
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


def _windowed(image: Image.Image) -> Image.Image:
    """Maps the 1st to 99.7th percentile of a greyscale image to 0 to 255, as mode 'L'. A constant image becomes black."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size < values.size:
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    low, high = np.percentile(values, _WINDOW_PERCENTILES)
    if low == high:  # a few bright pixels on a constant background
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8))


def pixels_sha256(image: Image.Image) -> str:
    """Returns the SHA-256 of an image's mode, size and pixels."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
