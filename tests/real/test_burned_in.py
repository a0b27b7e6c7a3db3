"""Text near borders of real images: what is drawn there is found, images without text are not called."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_prep.reading.burned_in import has_text
from vitar_jax.processing.files import open_image

TEXT = "DOE JANE 03-02-1971"


def without_text(test_data: Path) -> dict[str, Image.Image]:
    """Real images that carry no text."""
    files = [*(test_data / "nih_cxr14").glob("*.png"), *(test_data / "pyradiomics_lesions" / "slices").glob("*.png")]
    files += [
        *(test_data / "skimage").iterdir(),
        test_data / "pydicom" / "CT_small.dcm",
        test_data / "pydicom" / "MR_small.dcm",
    ]
    return {file.name: open_image(file) for file in sorted(files)}


def test_images_without_text_are_not_called(test_data: Path) -> None:
    images = without_text(test_data)
    assert len(images) == 17 and not [name for name, image in images.items() if has_text(image)]


@pytest.mark.parametrize("size", [10, 14, 20, 28])
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_drawn_text_is_found(test_data: Path, size: int, corner: tuple[int, int]) -> None:
    """White letters in a dark corner, black ones in a light corner."""
    for path in sorted((test_data / "nih_cxr14").glob("*.png")):
        image = open_image(path).convert("L")
        font = ImageFont.load_default(size)
        width, height = ImageDraw.Draw(image).textbbox((0, 0), TEXT, font=font)[2:]
        x, y = corner[0] * (image.width - width - 8) + 4, corner[1] * (image.height - height - 8) + 4
        dark = np.asarray(image.crop((x, y, x + width, y + height))).mean() < 128
        ImageDraw.Draw(image).text((x, y), TEXT, fill=255 if dark else 0, font=font)
        assert has_text(image)


def check_vqa_rad(images: list[Image.Image]) -> None:
    """Every image has an uploader's line or a watermark; the middle of them has none, but for one of the 315."""
    assert all(has_text(image) for image in images)
    middles = [image.crop(tuple(round(side * at) for at in (0.15, 0.85) for side in image.size)) for image in images]
    assert sum(has_text(middle) for middle in middles) <= 1


def vqa_rad(test_data: Path) -> list[Path]:
    return sorted((test_data / "vqa_rad" / "images").iterdir())


def test_some_of_vqa_rad(test_data: Path) -> None:
    check_vqa_rad([open_image(path) for path in random.Random(0).sample(vqa_rad(test_data), 12)])


@pytest.mark.sweep
def test_all_of_vqa_rad(test_data: Path) -> None:
    files = vqa_rad(test_data)
    assert len(files) == 315
    check_vqa_rad([open_image(path) for path in files])
