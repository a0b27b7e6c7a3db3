"""Draws boxes on images that are sent to a model or shown on the sample page."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from data_prep.reading.pixels import only_pixels
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.tools import OUTLINE, OUTLINE_WIDTH
from vitar_jax.processing.files import open_image


def marked(source: Path | Image.Image, boxes: Sequence[Box], longest: int) -> Image.Image:
    """Returns the image in RGB, its longer side at most `longest` pixels, with the boxes outlined in red.

    Boxes may have any size. The outline lies outside the box, so it does not hide a lesion of a few pixels, as the outline
    of the mark tool would. The returned image has no metadata.

    Raises:
      ImageError: If the image cannot be read.
    """
    image = only_pixels(open_image(source).convert("RGB"))
    scale = min(1.0, longest / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    across, down = width / image.width, height / image.height
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    for box in boxes:
        upper_left = round(box.x1 * across) - OUTLINE_WIDTH, round(box.y1 * down) - OUTLINE_WIDTH
        lower_right = round(box.x2 * across) + OUTLINE_WIDTH - 1, round(box.y2 * down) + OUTLINE_WIDTH - 1
        ImageDraw.Draw(image).rectangle((upper_left, lower_right), outline=OUTLINE, width=OUTLINE_WIDTH)
    return image
