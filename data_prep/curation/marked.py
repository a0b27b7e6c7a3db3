"""An image with boxes drawn, as it is sent to a model or shown on a page."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from vitar_jax.episodes.boxes import Box
from vitar_jax.episodes.tools import OUTLINE, OUTLINE_WIDTH
from vitar_jax.processing.files import open_image


def marked(path: Path, boxes: Sequence[Box], longest: int) -> Image.Image:
    """The image in RGB, its longer side at most so many pixels, then boxes of any size outlined in red, 3 px wide.

    Raises:
      ImageError: it cannot be read.
    """
    image = open_image(path).convert("RGB")
    scale = min(1.0, longest / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    across, down = width / image.width, height / image.height
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    for box in boxes:
        edges = (box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)
        ImageDraw.Draw(image).rectangle(edges, outline=OUTLINE, width=OUTLINE_WIDTH)
    return image
