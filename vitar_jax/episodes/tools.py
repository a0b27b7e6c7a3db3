"""Tools by name: pure functions from an image and arguments to an observation or a typed error."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeGuard

from PIL import Image, ImageDraw, ImageOps

from vitar_jax.episodes.actions import ActionError, ToolCall
from vitar_jax.episodes.affine import IDENTITY, Affine
from vitar_jax.episodes.mask_drawing import outlined
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Box, Size
from vitar_jax.errors import ImageError
from vitar_jax.processing.equalise import clahe
from vitar_jax.processing.hounsfield import read_hounsfield, windowed
from vitar_jax.processing.spacing import read_spacing
from vitar_jax.runtime.registry import Registry

MIN_SIDE = 28  # minimum side of a box, in pixels of the image acted on: one merged token of the model
MAX_TEXT = 1000  # characters of a text argument
OUTLINE = (255, 0, 0)
OUTLINE_WIDTH = 3
# Centres and widths of CT windows, in Hounsfield units; others are in use too (radiopaedia.org/articles/windowing-ct).
CT_WINDOWS = {"lung": (-600.0, 1500.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0), "soft tissue": (50.0, 400.0)}


@dataclasses.dataclass(frozen=True)
class Original:
    """The sample's image that an image was made from.

    Attributes:
      source: The image or its file, which may hold more than the 8 bits that the model sees.
      to_original: Map from the pixels of the image that was made to those of the sample's image.
    """

    source: Image.Image | str
    to_original: Affine


@dataclasses.dataclass(frozen=True)
class Context:
    """The image, boxes and masks that a tool acts on.

    Attributes:
      image: The image that the call names. Tools must not modify it.
      boxes: The call's boxes on that image, in frame "original".
      view_pixels: Number of pixels of the sample's first image as the model sees it, so that new images can cost the same.
      masks: The masks of the turn's `[SEG]` tokens, in order, if the call names image 0, which they are on.
      original: The sample's image that `image` is or was made from; None if no map leads to one.
    """

    image: Image.Image
    boxes: tuple[Box, ...]
    view_pixels: int
    masks: tuple[ObjectMask, ...] = ()
    original: Original | None = None


@dataclasses.dataclass(frozen=True)
class Observation:
    """The result of a tool: an image, a text, or both.

    Attributes:
      to_source: Map from the image's pixels to the pixels of the image acted on. It carries boxes from one image to the
        other: `IDENTITY` for an annotated copy, `Affine.crop` for a crop. If None, no map exists, as for a plot.
    """

    image: Image.Image | None = None
    text: str = ""
    to_source: Affine | None = None


Function = Callable[..., Observation | ActionError]


class Parameter(Protocol):
    """A parameter of a tool: its JSON schema for the model, and the check of its value."""

    def schema(self) -> dict[str, Any]: ...

    def read(self, tool: str, name: str, value: Any) -> Any:
        """Returns the value to pass, or an ActionError."""
        ...


@dataclasses.dataclass(frozen=True)
class Boxes:
    """A list of one to `most` boxes. A tool has at most one such parameter and finds them in `Context.boxes`."""

    most: int

    def schema(self) -> dict[str, Any]:
        return {
            "type": "array",
            "description": "[left, upper, right, lower] in pixels of the image",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
            "minItems": 1,
            "maxItems": self.most,
        }

    def read(self, tool: str, name: str, value: Any) -> tuple[tuple[float, float, float, float], ...] | ActionError:
        if not isinstance(value, list) or not 1 <= len(value) <= self.most:
            some = f"{name} is a list of 1 to {self.most} boxes." if self.most > 1 else f"{tool} takes exactly one box."
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


@dataclasses.dataclass(frozen=True)
class Number:
    """A number from `low` to `high`."""

    low: float
    high: float

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def read(self, tool: str, name: str, value: Any) -> float | ActionError:
        if not _is_number(value) or not self.low <= value <= self.high:
            return ActionError("bad_number", f"{name} is a number from {self.low:g} to {self.high:g}.")
        return float(value)


@dataclasses.dataclass(frozen=True)
class Text:
    """A text of at most `most` characters."""

    most: int = MAX_TEXT

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.most}

    def read(self, tool: str, name: str, value: Any) -> str | ActionError:
        if not isinstance(value, str) or len(value) > self.most:
            return ActionError("bad_text", f"{name} is a text of at most {self.most} characters.")
        return value


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some texts."""

    texts: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.texts)}

    def read(self, tool: str, name: str, value: Any) -> str | ActionError:
        if not isinstance(value, str) or value not in self.texts:
            return ActionError("bad_text", f"{name} is one of {', '.join(self.texts)}.")
        return value


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool and its parameters.

    Attributes:
      name: Name that the model uses.
      run: Function of a `Context`, and of each parameter except boxes by its name.
      about: Description for the model.
    """

    name: str
    run: Function
    about: str
    parameters: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)

    def __call__(self, context: Context, **arguments: Any) -> Observation | ActionError:
        return self.run(context, **arguments)

    @property
    def max_boxes(self) -> int:
        """Maximum number of boxes per call; 0 for a tool without boxes."""
        return sum(parameter.most for parameter in self.parameters.values() if isinstance(parameter, Boxes))

    def schema(self) -> dict[str, Any]:
        """Returns the tool's JSON schema, in the form that describes functions to models."""
        required = {name: parameter.schema() for name, parameter in self.parameters.items()}
        image = {"type": "integer", "description": "index of the image; 0, the first, unless given", "minimum": 0}
        return {
            "name": self.name,
            "description": self.about,
            "parameters": {"type": "object", "properties": required | {"image": image}, "required": list(required)},
        }


TOOLS: Registry[Tool] = Registry("tool")


def tool(name: str, about: str, **parameters: Parameter) -> Callable[[Function], Tool]:
    """Returns a decorator that makes a function a tool and registers it as `name`. See `Tool`."""

    def register(run: Function) -> Tool:
        return TOOLS.register(name)(Tool(name, run, about, parameters))

    return register


@tool("mark", "Outlines boxes in red on the whole image.", box=Boxes(16))
def mark(context: Context) -> Observation | ActionError:
    """Outlines boxes in red, 3 px wide, on a copy of the whole image."""
    if error := _outside(context):
        return error
    return Observation(_outlined(context.image.convert("RGB"), context.boxes, OUTLINE), to_source=IDENTITY)


@tool("zoom", "Shows one box, enlarged.", box=Boxes(1))
def zoom(context: Context) -> Observation | ActionError:
    """Crops one box at full resolution and resizes the crop to about `view_pixels`."""
    if error := _outside(context):
        return error
    (box,) = context.boxes
    scale = (context.view_pixels / box.area) ** 0.5
    size = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    crop = context.image.resize(size, Image.Resampling.BICUBIC, box=box.xyxy)
    return Observation(crop, to_source=Affine.crop(box, size))


TOOLS["Gaze"] = dataclasses.replace(zoom, name="Gaze")  # MedEyes' name


@tool("outline", "Outlines the masks of the turn on the first image, each object in a colour of its own.")
def outline(context: Context) -> Observation | ActionError:
    """Outlines the turn's masks, 3 px wide, on a copy of the whole image."""
    if not any(one.mask is not None and one.mask.area for one in context.masks):
        return ActionError("no_mask", "The turn has no mask on this image.")
    return Observation(outlined(context.image, context.masks, OUTLINE_WIDTH), to_source=IDENTITY)


@tool("window", "Stretches the grey values around a centre over the whole range.", centre=Number(0, 255), width=Number(1, 255))
def window(context: Context, *, centre: float, width: float) -> Observation:
    """Applies level and window to each channel: maps centre - width / 2 to 0 and centre + width / 2 to 255, linearly."""
    low = centre - width / 2
    table = [min(255, max(0, round(255 * (value - low) / width))) for value in range(256)]
    return Observation(context.image.point(table * len(context.image.getbands())), to_source=IDENTITY)


@tool("ct_window", "Shows a CT image in the window of a tissue.", preset=Choice(tuple(CT_WINDOWS)))
def ct_window(context: Context, *, preset: str) -> Observation | ActionError:
    """Shows CT values in one of `CT_WINDOWS`. For an edited image, shows the same part of its original, without the edit."""
    values = None if context.original is None else read_hounsfield(context.original.source)
    if context.original is None or values is None:
        return ActionError("no_values", "The image has no CT values.")
    shown, part = windowed(values, *CT_WINDOWS[preset]), context.original.to_original
    return Observation(shown if part == IDENTITY else _mapped(shown, part, context.image.size), to_source=IDENTITY)


@tool("clahe", "Equalises the contrast of the image tile by tile.")
def equalise(context: Context) -> Observation:
    """Equalises the histograms of tiles, with limited contrast (`processing/equalise.py`)."""
    return Observation(clahe(context.image), to_source=IDENTITY)


@tool("invert", "Shows bright as dark and dark as bright.")
def invert(context: Context) -> Observation:
    """Inverts each channel."""
    image = context.image if context.image.mode == "L" else context.image.convert("RGB")
    return Observation(ImageOps.invert(image), to_source=IDENTITY)


@tool("rotate", "Rotates the image clockwise, in degrees.", degrees=Number(-180, 180))
def rotate(context: Context, *, degrees: float) -> Observation:
    """Rotates the image about its centre, into an image that shows all of it, on black."""
    to_source, size = Affine.rotation(degrees, context.image.size)
    return Observation(_mapped(context.image, to_source, size), to_source=to_source)


@tool("ruler", "Measures the width, height and diagonal of a box, in mm if the size of a pixel is known.", box=Boxes(1))
def ruler(context: Context) -> Observation | ActionError:
    """Measures a box, and with its diagonal the distance of any two points. Without spacing, counts pixels of the original."""
    if error := _outside(context, smallest=0):
        return error
    (box,) = context.boxes
    source, part = (context.original.source, context.original.to_original) if context.original else ("", IDENTITY)
    try:
        spacing = read_spacing(source) if isinstance(source, str) and source else None
    except ImageError:
        return ActionError("no_values", "The image states a damaged size of its pixels.")
    rows, columns, unit = (spacing.rows, spacing.columns, "mm") if spacing else (1.0, 1.0, "px")
    lengths = []
    for x, y in ((box.width, 0), (0, box.height), (box.width, box.height)):
        lengths.append(math.hypot(columns * (part.a * x + part.b * y), rows * (part.d * x + part.e * y)))
    where = " at the detector, more than in the patient" if spacing and spacing.at_detector else ""
    width, height, diagonal = (f"{length:.1f} {unit}" for length in lengths)
    return Observation(text=f"Width {width}, height {height}, diagonal {diagonal}{where}.")


@tool("mark_as_published", "Outlines boxes on the whole image.", box=Boxes(1000))
def mark_as_published(context: Context) -> Observation:
    """Outlines boxes like ViTAR's published tool: of any size and place, white on grey images, red on colour images."""
    image = context.image if context.image.mode in ("L", "RGB", "RGBA") else context.image.convert("RGB")
    colour = {"L": 255, "RGBA": (*OUTLINE, 255)}.get(image.mode, OUTLINE)
    return Observation(_outlined(image.copy(), context.boxes, colour), to_source=IDENTITY)


def read_call(name: str, arguments: Mapping[str, Any]) -> ToolCall | ActionError:
    """Checks the arguments of a call. Ignores unknown arguments, and all arguments of an unknown tool."""
    if name not in TOOLS:
        return ToolCall(name)
    read: dict[str, Any] = {}
    for key, parameter in TOOLS[name].parameters.items():
        read[key] = parameter.read(name, key, arguments.get(key))
        if isinstance(read[key], ActionError):
            return read[key]
    boxes = next((read.pop(key) for key, parameter in TOOLS[name].parameters.items() if isinstance(parameter, Boxes)), ())
    image = arguments.get("image", 0)
    if isinstance(image, bool) or not isinstance(image, int):
        return ActionError("bad_image", "The image is named by a whole number.")
    return ToolCall(name, boxes, image, read)


def widened(box: Box, size: Size) -> Box:
    """Returns the box, enlarged within the image so that a tool accepts it in a view of any size.

    A view has at least MIN_SIDE pixels along each side, so one of them spans at most side / MIN_SIDE pixels of the image.
    Rounding to view pixels moves each edge by up to half of that. One more pixel allows for our own rounding.

    Args:
      box: Box in frame "original".
      size: (width, height) of the image.

    Raises:
      ValueError: If the image is too small.
    """
    grown = []
    for low, high, side in ((box.x1, box.x2, size[0]), (box.y1, box.y2, size[1])):
        length = max(high - low, MIN_SIDE + side / MIN_SIDE + 1)
        if length > side:
            raise ValueError(f"an image of {size[0]} x {size[1]} pixels is too small for a tool's box")
        start = min(max((low + high - length) / 2, 0), side - length)
        grown.append((start, start + length))
    (x1, x2), (y1, y2) = grown
    return Box(x1, y1, x2, y2, "original")


def _is_number(value: Any) -> TypeGuard[float]:
    # Compares before converting, because float() of a huge integer overflows. NaN is in no range.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _outside(context: Context, smallest: float = MIN_SIDE) -> ActionError | None:
    for box in context.boxes:
        if min(box.x1, box.y1) < 0 or box.x2 > context.image.width or box.y2 > context.image.height:
            return ActionError("box_outside", "A box lies outside the image.")
        if min(box.width, box.height) < smallest:
            return ActionError("box_too_small", "A box is too small.")
    return None


def _mapped(image: Image.Image, to_source: Affine, size: Size) -> Image.Image:
    """Returns the image of this (width, height) that a map makes of a source; black where the source ends."""
    return image.transform(size, Image.Transform.AFFINE, dataclasses.astuple(to_source), Image.Resampling.BICUBIC)


def _outlined(image: Image.Image, boxes: tuple[Box, ...], colour: int | tuple[int, ...]) -> Image.Image:
    """Draws the outlines of boxes on `image` in place and returns it."""
    # Moves far edges to just beyond the image, because PIL visits every pixel of a huge edge.
    beyond = OUTLINE_WIDTH + 1
    for box in boxes:
        x1, x2 = (min(max(x, -beyond), image.width + beyond) for x in (box.x1, box.x2))
        y1, y2 = (min(max(y, -beyond), image.height + beyond) for y in (box.y1, box.y2))
        ImageDraw.Draw(image).rectangle((x1, y1, x2, y2), outline=colour, width=OUTLINE_WIDTH)
    return image
