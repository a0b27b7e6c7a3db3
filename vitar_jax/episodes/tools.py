"""Tools by name: pure functions from an image to an image or a typed error, and what arguments they take."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from PIL import Image, ImageDraw

from vitar_jax.episodes.actions import ActionError, ToolCall
from vitar_jax.episodes.boxes import Box

MIN_SIDE = 28  # pixels of the image acted on: one merged token of the model
OUTLINE = (255, 0, 0)
OUTLINE_WIDTH = 3

Function = Callable[..., Image.Image | ActionError]


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool and its arguments.

    Attributes:
      run: (image, boxes in frame "original", pixels of a look, **numbers) -> image.
      about: what it does, for the model.
      max_boxes: most boxes in the argument `box`; 0: it takes no boxes.
      numbers: lowest and highest value of each further argument.
      crops: whether it returns its box alone, and not the whole image.
    """

    run: Function
    about: str
    max_boxes: int
    numbers: Mapping[str, tuple[float, float]]
    crops: bool


TOOLS: dict[str, Tool] = {}


def tool(
    name: str, about: str, *, max_boxes: int = 0, crops: bool = False, **numbers: tuple[float, float]
) -> Callable[[Function], Function]:
    """Registers a function as the tool `name`. See `Tool`."""

    def register(run: Function) -> Function:
        TOOLS[name] = Tool(run, about, max_boxes, numbers, crops)
        return run

    return register


@tool("mark", "Outlines boxes in red on the whole image.", max_boxes=16)
def mark(image: Image.Image, boxes: tuple[Box, ...], look_pixels: int) -> Image.Image | ActionError:
    """Outlines boxes in red, 3 px wide, on a copy of the whole image."""
    del look_pixels
    return _outside(image, boxes) or _outlined(image.convert("RGB"), boxes, OUTLINE)


@tool("zoom", "Shows one box, enlarged.", max_boxes=1, crops=True)
def zoom(image: Image.Image, boxes: tuple[Box, ...], look_pixels: int) -> Image.Image | ActionError:
    """Cuts one box out of the image's own pixels, scaled to about `look_pixels`, so that every look costs alike."""
    if error := _outside(image, boxes):
        return error
    (box,) = boxes
    scale = (look_pixels / box.area) ** 0.5
    size = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, box=box.xyxy)


@tool("window", "Stretches the grey values around a centre over the whole range.", centre=(0, 255), width=(1, 255))
def window(image: Image.Image, boxes: tuple[Box, ...], look_pixels: int, *, centre: float, width: float) -> Image.Image:
    """Level and window: centre - width / 2 becomes 0, centre + width / 2 becomes 255, linear between, of each channel."""
    del boxes, look_pixels
    low = centre - width / 2
    table = [min(255, max(0, round(255 * (value - low) / width))) for value in range(256)]
    return image.point(table * len(image.getbands()))


@tool("mark_as_published", "Outlines boxes on the whole image.", max_boxes=1000)
def mark_as_published(image: Image.Image, boxes: tuple[Box, ...], look_pixels: int) -> Image.Image:
    """ViTAR's published tool: boxes of any size and place, white on a grey image and red on one in colour."""
    del look_pixels
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return _outlined(image.copy(), boxes, {"L": 255, "RGBA": (*OUTLINE, 255)}.get(image.mode, OUTLINE))


def schema(name: str) -> dict[str, Any]:
    """A tool as JSON schema, as models are told of functions."""
    described = TOOLS[name]
    coordinates = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    boxes = {
        "type": "array",
        "description": "[left, upper, right, lower] in pixels of the image",
        "items": coordinates,
        "minItems": 1,
        "maxItems": described.max_boxes,
    }
    numbers = {key: {"type": "number", "minimum": low, "maximum": high} for key, (low, high) in described.numbers.items()}
    required = ({"box": boxes} if described.max_boxes else {}) | numbers
    image = {"type": "integer", "description": "index of the image; 0, the first, unless given", "minimum": 0}
    return {
        "name": name,
        "description": described.about,
        "parameters": {"type": "object", "properties": required | {"image": image}, "required": list(required)},
    }


def read_call(name: str, arguments: Mapping[str, Any]) -> ToolCall | ActionError:
    """Checks the arguments of a call. Others than the tool's are passed over, and so are all of a tool that there is not."""
    if name not in TOOLS:
        return ToolCall(name)
    wanted = TOOLS[name]
    boxes = _read_boxes(name, arguments.get("box"), wanted.max_boxes) if wanted.max_boxes else ()
    if isinstance(boxes, ActionError):
        return boxes
    numbers = {}
    for key, (low, high) in wanted.numbers.items():
        value = arguments.get(key)
        if not _is_number(value) or not low <= value <= high:
            return ActionError("bad_number", f"{key} is a number from {low:g} to {high:g}.")
        numbers[key] = float(value)
    image = arguments.get("image", 0)
    if isinstance(image, bool) or not isinstance(image, int):
        return ActionError("bad_image", "The image is named by a whole number.")
    return ToolCall(name, boxes, image, numbers)


def _read_boxes(name: str, value: Any, most: int) -> tuple[tuple[float, float, float, float], ...] | ActionError:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        some = f"box is a list of 1 to {most} boxes." if most > 1 else f"{name} takes exactly one box."
        return ActionError("box_count", some)
    boxes = []
    four = "A box is four numbers: left, upper, right, lower."
    for box in value:
        if not isinstance(box, list) or len(box) != 4:
            return ActionError("box_nesting", four)
        if not all(_is_number(edge) for edge in box):
            return ActionError("box_number", four)
        x1, y1, x2, y2 = (float(edge) for edge in box)
        if not (x1 < x2 and y1 < y2):
            return ActionError("box_reversed", "A box has right > left and lower > upper.")
        boxes.append((x1, y1, x2, y2))
    return tuple(boxes)


def _is_number(value: Any) -> TypeGuard[float]:
    # Compared before any conversion: float() of a huge integer overflows. NaN is in no range.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _outside(image: Image.Image, boxes: tuple[Box, ...]) -> ActionError | None:
    for box in boxes:
        if min(box.x1, box.y1) < 0 or box.x2 > image.width or box.y2 > image.height:
            return ActionError("box_outside", "A box lies outside the image.")
        if min(box.width, box.height) < MIN_SIDE:
            return ActionError("box_too_small", "A box is too small.")
    return None


def _outlined(image: Image.Image, boxes: tuple[Box, ...], colour: int | tuple[int, ...]) -> Image.Image:
    """Draws on `image` itself."""
    # An edge beyond the image is drawn just beyond it: PIL would walk along every pixel of a huge one.
    beyond = OUTLINE_WIDTH + 1
    for box in boxes:
        x1, x2 = (min(max(x, -beyond), image.width + beyond) for x in (box.x1, box.x2))
        y1, y2 = (min(max(y, -beyond), image.height + beyond) for y in (box.y1, box.y2))
        ImageDraw.Draw(image).rectangle((x1, y1, x2, y2), outline=colour, width=OUTLINE_WIDTH)
    return image
