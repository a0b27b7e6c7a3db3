"""Images: from a file to the patches a Qwen2-VL family vision tower reads.

Equal bit for bit to Hugging Face's `Qwen2VLImageProcessorPil`, in numpy and PIL alone, and faster: pixels
stay bytes until one table lookup at the very end, and a grey image is resized as the one channel it is.
"""

import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitar_jax.errors import ConfigError, ImageError

MAX_PIXELS = 89_478_485  # where PIL begins to call a picture a decompression bomb: 256 MiB of RGB
MAX_ASPECT_RATIO = 200  # of Qwen's smart_resize

# Formats decoded in process; PIL would start Ghostscript for an EPS. JPEG stands for MPO too.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_WINDOW_PERCENTILES = (1.0, 99.7)
_CONFIG_NAME = "preprocessor_config.json"


# Files and modes


def open_image(source: str | Path | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image and turns it upright: mode 'L' where it is grey without transparency, else 'RGB'.

    Size and shape are checked from the header, before anything is decoded. Of an animation the first frame is
    taken. An image that is ready as it is comes back itself.

    Args:
      source: a path, the content of a file, or an image that PIL has opened.
      max_pixels: width * height that is still decoded.

    Raises:
      ImageError: names the file, and what is wrong with it: missing, not an image, damaged, more than
        `max_pixels` pixels, or longer than 200 times its breadth. Nothing that PIL raises escapes.
    """
    if isinstance(source, Image.Image):
        return _decode(source, getattr(source, "filename", "") or "an image in memory", max_pixels)
    file, name = (io.BytesIO(source), "an image in memory") if isinstance(source, bytes) else (source, source)
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return _decode(image, name, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a format known here ({', '.join(_FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too many pixels: {error}") from error
    except Exception as error:  # a header can break a PIL plugin in any way
        raise ImageError(f"{name}: cannot be read as an image: {error!r}") from error


def _decode(image: Image.Image, name: str | Path, max_pixels: int) -> Image.Image:
    width, height = image.size
    if min(width, height) < 1:
        raise ImageError(f"{name}: an empty image, {width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width}x{height} pixels are more than the {max_pixels} allowed")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{name}: {_too_long(width, height)}")
    try:
        image.load()
        return _upright_rgb_or_grey(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # damaged pixels raise OSError, SyntaxError, struct.error, ... by format
        raise ImageError(f"{name}: damaged or truncated: {error!r}") from error


def _too_long(width: int, height: int) -> str:
    return f"{width}x{height} pixels, the longer side may be up to {MAX_ASPECT_RATIO} times the shorter"


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns `image` upright, in mode 'RGB', with anything transparent laid on white.

    Eight bits are converted as Hugging Face does (palette, CMYK, grey, alpha). Deeper grey images ('I;16',
    'I', 'F') are windowed: the range from their 1st to their 99.7th percentile becomes 0 to 255.

    Raises:
      ImageError: the mode has no conversion.
    """
    image = _upright_rgb_or_grey(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright_rgb_or_grey(image: Image.Image) -> Image.Image:
    """`to_rgb`, but what is grey stays one channel, 'L'. `image` itself where there is nothing to do."""
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


# Pixels to patches


@dataclass(frozen=True)
class ProcessedImage:
    """One image as its vision tower reads it."""

    patches: np.ndarray
    """float32 [h * w, 3 * temporal_patch_size * patch_size**2], the patches of a merge unit side by side."""
    grid_thw: tuple[int, int, int]
    """(1, h, w): patches in time, down and across."""
    size: tuple[int, int]
    """(height, width) in pixels that the patches cover: the `model_input` frame."""


@dataclass(frozen=True)
class ImageProcessor:
    """Resizes and normalises an image and cuts it into patches.

    Equal to Hugging Face's `Qwen2VLImageProcessorPil` bit for bit, and its defaults are the same.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, it must be an integer of 1 or more")
        if self.max_pixels < self.min_pixels:
            raise ConfigError(f"max_pixels {self.max_pixels} is below min_pixels {self.min_pixels}")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0 in self.image_std:
            raise ConfigError("image_mean and image_std need 3 numbers each, image_std none of them 0")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ImageProcessor":
        """Reads `preprocessor_config.json`; what it does not state is as in Hugging Face's class.

        Pixel budgets are `min_pixels` and `max_pixels`, or the newer `size` with `shortest_edge` and
        `longest_edge` (which count pixels too, whatever their names say).

        Raises:
          ConfigError: the file is missing, is not JSON, or asks for another kind of processing.
        """
        path = Path(directory) / _CONFIG_NAME
        try:
            config = json.loads(path.read_text())
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(f"{path}: holds a {type(config).__name__}, not an object")
        for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if config.get(key) is False:
                raise ConfigError(f"{path}: {key} is false, only true is supported")
        if config.get("resample", Image.Resampling.BICUBIC) not in (None, Image.Resampling.BICUBIC):
            raise ConfigError(f"{path}: resample is {config['resample']}, only 3 (bicubic) is supported")
        if not math.isclose(config.get("rescale_factor") or 1 / 255, 1 / 255):
            raise ConfigError(f"{path}: rescale_factor is {config['rescale_factor']}, not 1/255")

        stated = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None}
        size = config.get("size") or {}
        for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if size and key not in stated:  # Hugging Face prefers min_pixels and max_pixels too
                if edge not in size:
                    raise ConfigError(f"{path}: size has no {edge}, it is {size}")
                stated[key] = size[edge]
        try:
            for key in {"image_mean", "image_std"} & stated.keys():
                stated[key] = tuple(map(float, stated[key]))
            return cls(**stated)
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `preprocessor_config.json` as Qwen publishes it; Hugging Face reads it too."""
        config = {
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "image_processor_type": "Qwen2VLImageProcessor",
        }
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / _CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image is resized to: Qwen's `smart_resize`.

        Both are multiples of patch_size * merge_size, near the image's shape, with an area between min_pixels
        and max_pixels, except where rounding carries it over: a side never gets below one multiple, and an
        image enlarged to min_pixels is rounded up.

        Raises:
          ImageError: one side is over 200 times the other, or zero.
        """
        if min(height, width) < 1 or max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
            raise ImageError(_too_long(width, height))
        factor = self.patch_size * self.merge_size
        # `round` takes halves to the even neighbour, and so does the reference.
        target_height, target_width = round(height / factor) * factor, round(width / factor) * factor
        if target_height * target_width > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            target_height = max(factor, math.floor(height / shrink / factor) * factor)
            target_width = max(factor, math.floor(width / shrink / factor) * factor)
        elif target_height * target_width < self.min_pixels:
            stretch = math.sqrt(self.min_pixels / (height * width))
            target_height = math.ceil(height * stretch / factor) * factor
            target_width = math.ceil(width * stretch / factor) * factor
        return target_height, target_width

    def num_tokens(self, height: int, width: int) -> int:
        """How many tokens an image of this size becomes: one a merge unit. Raises as `target_size`."""
        target_height, target_width = self.target_size(height, width)
        return target_height * target_width // (self.patch_size * self.merge_size) ** 2

    def __call__(self, image: Image.Image) -> ProcessedImage:
        """Returns the patches of `image`, of any mode and size.

        Raises:
          ImageError: see `target_size` and `to_rgb`.
        """
        image = _upright_rgb_or_grey(image)
        height, width = self.target_size(image.height, image.width)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        grid_h, grid_w = height // self.patch_size, width // self.patch_size

        # Still bytes: a transpose of them moves a quarter of what one of floats would.
        # [rows, m, p, columns, m, p, channels] -> [rows, columns, m, m, channels, p, p], p = patch, m = merge
        m, p = self.merge_size, self.patch_size
        bytes_ = np.asarray(image).reshape(grid_h // m, m, p, grid_w // m, m, p, len(image.getbands()))
        bytes_ = bytes_.transpose(0, 3, 1, 4, 6, 2, 5).reshape(grid_h * grid_w, -1, p * p)

        table = _normalised(self.image_mean, self.image_std)
        patches = np.empty((grid_h * grid_w, 3, self.temporal_patch_size, p * p), np.float32)
        for channel in range(3):
            plane = bytes_[:, channel if bytes_.shape[1] == 3 else 0]
            patches[:, channel] = table[channel].take(plane)[:, None]  # a still: the same at every time
        return ProcessedImage(patches.reshape(grid_h * grid_w, -1), (1, grid_h, grid_w), (height, width))


@lru_cache
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 [3, 256]: what each byte becomes in each channel.

    Hugging Face multiplies by 1/255 in float64 and rounds that to float32, in which the rest is done.
    """
    rescaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean_, std_ = np.array(mean, np.float32)[:, None], np.array(std, np.float32)[:, None]
    return (rescaled - mean_) / std_
