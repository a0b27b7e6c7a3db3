"""Image files: from a path or bytes to an upright picture of 8 bits, or one clear error."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitar_jax.errors import ImageError
from vitar_jax.processing.dicom import DicomFile, is_dicom

MAX_PIXELS = 89_478_485  # where PIL begins to call a picture a decompression bomb: 256 MiB of RGB
MAX_ASPECT_RATIO = 200  # of Qwen's smart_resize

# Formats decoded in process; PIL would start Ghostscript for an EPS. JPEG stands for MPO too.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_WINDOW_PERCENTILES = (1.0, 99.7)


def open_image(source: str | Path | bytes | Image.Image, *, frame: int = 0, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image and turns it upright: mode 'L' where it is grey without transparency, else 'RGB'.

    Size and shape are checked from the header, before anything is decoded. An image that is ready as it is comes
    back itself. DICOM is shown by its own window, if it has one.

    Args:
      source: a path, the content of a file, or an image that PIL has opened. A file is DICOM if it says so or is
        called `.dcm`.
      frame: which one, of a DICOM, TIFF, GIF or other file of several.
      max_pixels: width * height of a frame that is still decoded.

    Raises:
      ImageError: names the file, and what is wrong with it: missing, not an image, damaged, without this frame, more
        than `max_pixels` pixels, or longer than 200 times its breadth. Nothing that PIL or pydicom raises escapes.
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
        raise ImageError(f"{name}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format known here (DICOM, {', '.join(_FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels: {error}") from error
    except Exception as error:  # a header can break a PIL plugin, and pydicom, in any way
        raise ImageError(f"{name}: cannot be read as an image: {error!r}") from error


def _decode(opened: Image.Image | DicomFile, frame: int, max_pixels: int) -> Image.Image:
    _check_size(opened.size, max_pixels)
    try:
        if isinstance(opened, DicomFile):
            return upright_rgb_or_grey(opened.frame(frame))
        if frame:
            _seek(opened, frame)
            _check_size(opened.size, max_pixels)  # the pages of a TIFF differ
        opened.load()
        return upright_rgb_or_grey(opened)
    except ImageError:
        raise
    except Exception as error:  # damaged pixels raise OSError, SyntaxError, struct.error, ... by format
        raise ImageError(f"damaged or truncated: {error!r}") from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    check_shape(width, height)
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels are more than the {max_pixels} allowed")


def check_shape(width: int, height: int) -> None:
    """Raises ImageError for a shape that Qwen's processing has no patches for."""
    if min(width, height) < 1:
        raise ImageError(f"an empty image, {width}x{height} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{width}x{height} pixels, the longer side may be up to {MAX_ASPECT_RATIO} times the shorter")


def _seek(image: Image.Image, frame: int) -> None:
    try:
        image.seek(frame)
    except EOFError:
        raise ImageError(f"it has no frame {frame}") from None


def upright_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Returns `image` upright: mode 'L' where it is grey without transparency, else 'RGB'; itself if it is so already.

    Eight bits are converted as Hugging Face does (palette, CMYK, alpha), and what is transparent is laid on white. Deeper
    grey images ('I;16', 'I', 'F') are windowed: the range from their 1st to their 99.7th percentile becomes 0 to 255.

    Raises:
      ImageError: the mode has no conversion.
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
    except Exception:  # damaged EXIF says nothing about the pixels, and viewers pass over it too
        return 1


def _windowed(image: Image.Image) -> Image.Image:
    """A deep grey image as 'L', its 1st to 99.7th percentile stretched over 0 to 255; black if constant."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size < values.size:
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    low, high = np.percentile(values, _WINDOW_PERCENTILES)
    if low == high:  # a few bright pixels on a constant ground
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8))


def pixels_sha256(image: Image.Image) -> str:
    """Hash of an image's mode, size and pixels."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
