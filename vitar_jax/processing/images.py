"""Cuts images into the patches that vision towers of the Qwen2-VL family take.

Bit-identical to Hugging Face's processing, with numpy and PIL alone, and faster: pixels stay bytes until one table lookup at
the end, and greyscale images are resized as one channel.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from vitar_jax.errors import ConfigError, ImageError
from vitar_jax.processing.files import check_shape, upright_rgb_or_grey
from vitar_jax.processing.resample import resize_bicubic

_CONFIG_NAME = "preprocessor_config.json"
_PROCESSOR_NAME = "processor_config.json"  # of transformers 5, with the image settings under `image_processor`
_VIDEO_NAME = "video_preprocessor_config.json"


@dataclass(frozen=True)
class ProcessedImage:
    """The input of the vision tower for one image or one video."""

    patches: Float32[np.ndarray, "P C"]
    """[t * h * w, 3 * temporal_patch_size * patch_size**2]; the patches of one merge unit are adjacent."""
    grid_thw: tuple[int, int, int]
    """(t, h, w): number of patches in time, vertically and horizontally; t is 1 for an image."""
    size: tuple[int, int]
    """(height, width) of the area that the patches cover (pixels): the `model_input` frame."""


@dataclass(frozen=True)
class ImageProcessor:
    """Image processing of the Qwen2-VL family: resizes and normalises an image, and cuts it into patches.

    Bit-identical to Hugging Face's `Qwen2VLImageProcessorPil`, with the same defaults.

    Attributes:
      files: Text of the files that the settings were read from, and of the settings for videos, by name. `save_pretrained`
        keeps what they say beyond the settings.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    files: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, expected a positive integer")
        if self.max_pixels < self.min_pixels:
            raise ConfigError(f"max_pixels: got {self.max_pixels}, expected at least min_pixels, {self.min_pixels}")
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or 0 in self.image_std:
            raise ConfigError("image_mean, image_std: expected 3 numbers each, and no 0 in image_std")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ImageProcessor":
        """Reads the image settings. Missing keys have the defaults of Hugging Face's class.

        As in transformers 5, `image_processor` in `processor_config.json` goes before `preprocessor_config.json`.

        The pixel budget is `min_pixels` and `max_pixels`, or the newer `size` with `shortest_edge` and `longest_edge` (which,
        despite their names, count pixels).

        Raises:
          ConfigError: If the file is missing, is not JSON, or requests unsupported processing.
        """
        directory = Path(directory)
        files = {
            name: _read_text(directory / name)
            for name in (_CONFIG_NAME, _PROCESSOR_NAME, _VIDEO_NAME)
            if (directory / name).exists()
        }
        path, config = directory / _PROCESSOR_NAME, None
        if path.name in files:
            config = _json_object(files[path.name], path).get("image_processor")
        if config is None:
            path = directory / _CONFIG_NAME
            if path.name not in files:
                raise ConfigError(f"{path}: file does not exist")
            config = _json_object(files[path.name], path)
        if not isinstance(config, dict):
            raise ConfigError(f"{path}: image_processor: got {config!r}, expected a JSON object")
        for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if config.get(key) is False:
                raise ConfigError(f"{path}: {key}: got false, only true is supported")
        if config.get("resample", Image.Resampling.BICUBIC) not in (None, Image.Resampling.BICUBIC):
            raise ConfigError(f"{path}: resample: got {config['resample']}, only 3 (bicubic) is supported")
        if not math.isclose(config.get("rescale_factor") or 1 / 255, 1 / 255):
            raise ConfigError(f"{path}: rescale_factor: got {config['rescale_factor']}, only 1/255 is supported")

        stated = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None and key != "files"}
        size = config.get("size") or {}
        for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if size and key not in stated:  # Hugging Face also prefers min_pixels and max_pixels
                if edge not in size:
                    raise ConfigError(f"{path}: size: got {size}, expected the key {edge}")
                stated[key] = size[edge]
        try:
            for key in {"image_mean", "image_std"} & stated.keys():
                stated[key] = tuple(map(float, stated[key]))
            return cls(**stated, files=files)
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: {error}") from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `preprocessor_config.json` in the format of Qwen, which Hugging Face also reads, and the other files."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        whole, own = (json.loads(self.files.get(name, "{}")) for name in (_PROCESSOR_NAME, _CONFIG_NAME))
        nested = whole.get("image_processor")
        changed = {_CONFIG_NAME: self._settings(nested or own)}
        if nested:
            changed[_PROCESSOR_NAME] = whole | {"image_processor": self._settings(nested)}
        written = {**self.files, **{name: json.dumps(config, indent=2) + "\n" for name, config in changed.items()}}
        for name, text in written.items():
            (directory / name).write_text(text)

    def _settings(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings under Qwen's keys, beside what `source` says of other keys."""
        config = {"image_processor_type": "Qwen2VLImageProcessor"} | dict(source)
        if "size" in config:
            config["size"] = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        return config | {
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) that an image is resized to (pixels): Qwen's `smart_resize`.

        Both are multiples of patch_size * merge_size. They approximate the aspect ratio, with an area between min_pixels and
        max_pixels. Rounding can exceed max_pixels: each side is at least one multiple, and the sides of an image enlarged to
        min_pixels are rounded up.

        Raises:
          ImageError: If one side is zero or over 200 times the other.
        """
        check_shape(width, height)
        factor = self.patch_size * self.merge_size
        # `round` rounds halves to even, as the reference does.
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

    def __call__(self, image: Image.Image) -> ProcessedImage:
        """Returns the patches of an image of any mode and size.

        Raises:
          ImageError: See `target_size` and `upright_rgb_or_grey`.
        """
        image = _one_channel_if_grey(upright_rgb_or_grey(image))
        height, width = self.target_size(image.height, image.width)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        planes = self._cut(np.asarray(image))
        patches = np.empty((len(planes), 3, self.temporal_patch_size, self.patch_size**2), np.float32)
        _look_up(_still_levels(self.image_mean, self.image_std), planes, patches)  # repeated over the temporal patch
        return ProcessedImage(patches.reshape(len(planes), -1), self._grid(1, height, width), (height, width))

    def video(self, frames: Sequence[Image.Image]) -> ProcessedImage:
        """Returns the patches of a cine loop or of a series of slices.

        `temporal_patch_size` frames make one time step; the last step is padded with the last frame. All frames are used, and
        each may have `max_pixels`. Bit-identical to Hugging Face's `Qwen2VLVideoProcessor`, which resizes and normalises
        differently from its image processor.

        Raises:
          ImageError: If there are no frames, or frames of different sizes; see also `target_size` and `upright_rgb_or_grey`.
        """
        frames = [upright_rgb_or_grey(frame) for frame in frames]
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) != 1:
            raise ImageError(f"the frames of a video must have one size; these {len(frames)} have {sizes}")
        height, width = self.target_size(frames[0].height, frames[0].width)
        table = _frame_levels(self.image_mean, self.image_std)
        steps = -(-len(frames) // self.temporal_patch_size)
        grid_thw = self._grid(steps, height, width)
        shape = (steps, grid_thw[1] * grid_thw[2], 3, self.temporal_patch_size, self.patch_size**2)
        patches = np.empty(shape, np.float32)
        for index in range(steps * self.temporal_patch_size):
            step, time = divmod(index, self.temporal_patch_size)
            frame = _one_channel_if_grey(frames[min(index, len(frames) - 1)])
            planes = self._cut(resize_bicubic(np.atleast_3d(np.asarray(frame)), height, width))
            _look_up(table, planes, patches[step, :, :, time : time + 1])
        return ProcessedImage(patches.reshape(math.prod(grid_thw), -1), grid_thw, (height, width))

    def _grid(self, steps: int, height: int, width: int) -> tuple[int, int, int]:
        return steps, height // self.patch_size, width // self.patch_size

    def _cut(self, pixels: UInt8[np.ndarray, "..."]) -> UInt8[np.ndarray, "P channels pixels"]:
        """Cuts [H, W] or [H, W, channels] into patches. Bytes are transposed, which moves a quarter of the data of floats."""
        _, grid_h, grid_w = self._grid(1, *pixels.shape[:2])
        # [rows, m, p, columns, m, p, channels] -> [rows, columns, m, m, channels, p, p], p = patch, m = merge
        m, p = self.merge_size, self.patch_size
        planes = pixels.reshape(grid_h // m, m, p, grid_w // m, m, p, -1).transpose(0, 3, 1, 4, 6, 2, 5)
        return planes.reshape(grid_h * grid_w, -1, p * p)


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _json_object(text: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: got a {type(config).__name__}, expected a JSON object")
    return config


def _one_channel_if_grey(image: Image.Image) -> Image.Image:
    """Drops the redundant channels of a greyscale image stored as RGB, as most radiology is, so they are resized only once."""
    if image.mode != "RGB":
        return image
    red, green, blue = np.asarray(image).transpose(2, 0, 1)
    return image.getchannel(0) if np.array_equal(red, green) and np.array_equal(green, blue) else image


def _look_up(
    table: Float32[np.ndarray, "3 256"],
    planes: UInt8[np.ndarray, "P channels pixels"],
    patches: Float32[np.ndarray, "P 3 times pixels"],
) -> None:
    """Fills `patches` with the table values of the bytes, in blocks that fit into the CPU cache."""
    for start in range(0, len(planes), 64):
        part = slice(start, start + 64)
        places = planes[part].astype(np.intp)
        for channel in range(3):
            patches[part, channel] = table[channel].take(places[:, channel % planes.shape[1]])[:, None]


@lru_cache
def _still_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "3 256"]:
    """Returns the normalised value of each byte in each channel of an image.

    Hugging Face multiplies by 1/255 in float64, rounds to float32 and computes the rest in float32.
    """
    rescaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (rescaled - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


@lru_cache
def _frame_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "3 256"]:
    """Returns the normalised value of each byte of a video frame: mean and std are multiplied by 255 instead, in float32."""
    mean_, std_ = (np.array(values, np.float32)[:, None] * np.float32(255) for values in (mean, std))
    return (np.arange(256, dtype=np.float32) - mean_) / std_
