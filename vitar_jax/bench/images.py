"""Images that benchmarks read: those of a folder, or made ones."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from vitar_jax.errors import ImageError

_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_images(folder: Path, count: int) -> list[Path]:
    """Returns the first `count` JPEG and PNG files of a folder, by name.

    Raises:
      ImageError: If the folder holds no such files.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)[:count]
    if not files:
        raise ImageError(f"{folder}: no images found; expected {', '.join(_SUFFIXES)} files")
    return files


def make_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Generates grey JPEGs with the size, smoothness and grain of chest X-rays."""
    rng = np.random.default_rng(seed)
    files = []
    for index in range(count):
        width, height = (int(side) for side in rng.integers(1400, 2600, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8))
        smooth = coarse.resize((width, height), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(8))
        grain = rng.normal(0, 6, (height, width))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        files.append(folder / f"{index:03d}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files
