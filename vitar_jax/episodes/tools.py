"""Tools: pure functions (image, boxes) -> image, or a typed error the model can read."""

from collections.abc import Callable

from PIL import Image, ImageDraw

from vitar_jax.episodes.actions import ActionError
from vitar_jax.episodes.boxes import Box

# (image, boxes in frame "original", pixels of a look) -> image
Tool = Callable[[Image.Image, tuple[Box, ...], int], Image.Image | ActionError]

MIN_SIDE = 28  # pixels of the image acted on: one merged token of the model
OUTLINE = (255, 0, 0)
OUTLINE_WIDTH = 3


def mark(image: Image.Image, boxes: tuple[Box, ...], look_pixels: int) -> Image.Image | ActionError:
    """Outlines boxes in red, 3 px wide, on a copy of the whole image (ViTAR's published tool)."""
    del look_pixels
    if error := _outside(image, boxes):
        return error
    marked = image.convert("RGB")
    draw = ImageDraw.Draw(marked)
    for box in boxes:
        draw.rectangle((box.x1, box.y1, box.x2, box.y2), outline=OUTLINE, width=OUTLINE_WIDTH)
    return marked


def zoom(image: Image.Image, boxes: tuple[Box, ...], look_pixels: int) -> Image.Image | ActionError:
    """Cuts one box out of the image's own pixels, scaled to about `look_pixels`, so that every look costs alike."""
    if len(boxes) != 1:
        return ActionError("bad_box", "zoom takes exactly one box.")
    if error := _outside(image, boxes):
        return error
    box = boxes[0]
    width, height = box.x2 - box.x1, box.y2 - box.y1
    scale = (look_pixels / (width * height)) ** 0.5
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, box=(box.x1, box.y1, box.x2, box.y2))


TOOLS: dict[str, Tool] = {"mark": mark, "zoom": zoom}


def _outside(image: Image.Image, boxes: tuple[Box, ...]) -> ActionError | None:
    for box in boxes:
        if min(box.x1, box.y1) < 0 or box.x2 > image.width or box.y2 > image.height:
            return ActionError("box_outside", "A box lies outside the image.")
        if min(box.x2 - box.x1, box.y2 - box.y1) < MIN_SIDE:
            return ActionError("box_too_small", "A box is too small.")
    return None
