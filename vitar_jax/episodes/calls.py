"""Plays the tool calls of a turn, in order, up to the first that fails."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from vitar_jax.episodes.actions import ActionError, Answer, ToolCall
from vitar_jax.episodes.affine import Affine
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Box, Frame, to_frame
from vitar_jax.episodes.sample import Sample
from vitar_jax.episodes.tools import Context, Observation, Original
from vitar_jax.episodes.trajectory import GOLD_IMAGE, FurtherCall, TrajectoryImage, base_of
from vitar_jax.errors import ConfigError, ImageError
from vitar_jax.processing.images import ProcessedImage
from vitar_jax.processing.processor import Processor


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image to append. `source` and `to_source` are the index of the image that a tool made it from, and the map to it."""

    pixels: Image.Image
    processed: ProcessedImage
    source: int | None = None
    to_source: Affine | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """The observation of a turn.

    Attributes:
      text: Texts that tools returned, and the error.
      images: Images that tools returned.
      of_calls: Index of the image that each call returned, or None.
      error: The error of the last call, or None.
    """

    text: str
    images: Sequence[Shown]
    of_calls: tuple[int | None, ...] = ()
    error: ActionError | None = None


def recorded(shown: Shown, turn: int | None) -> TrajectoryImage:
    """Returns the record of an image that a tool of a turn returned; `turn` is None for an image of the sample."""
    processed = shown.processed
    return TrajectoryImage(shown.pixels, processed.grid_thw, processed.size, turn, shown.source, shown.to_source)


def play_calls(
    calls: Sequence[Answer | ToolCall | ActionError],
    sample: Sample,
    protocol: Protocol,
    processor: Processor,
    images: Sequence[TrajectoryImage],
    turn: int,
    masks: tuple[ObjectMask, ...],
) -> tuple[list[FurtherCall], Seen]:
    """Plays calls in order, up to the first that fails. A call may name an image that an earlier one returned.

    Args:
      images: Images of the episode so far.
      turn: Index of the turn.
      masks: Masks of the turn.

    Returns:
      A record of each call that was played, without its image, and what is seen.
    """
    known, shown, texts = list(images), list[Shown](), list[str]()
    played, of_calls = list[FurtherCall](), list[int | None]()
    for call in calls:
        if not isinstance(call, ToolCall):
            record, made = FurtherCall(None), call
        else:
            record, made = _play(call, sample, protocol, processor, known, masks)
        played.append(record)
        if not isinstance(made, Seen):
            assert isinstance(made, ActionError)  # an answer is no call
            texts.append(protocol.error.format(message=made.message))
            return played, Seen("\n".join(texts), shown, (*of_calls, None), made)
        of_calls.append(len(known) if made.images else None)
        known += [recorded(one, turn) for one in made.images]
        shown += made.images
        texts += [made.text] if made.text else []
    return played, Seen("\n".join(texts), shown, tuple(of_calls))


def _play(
    call: ToolCall,
    sample: Sample,
    protocol: Protocol,
    processor: Processor,
    images: Sequence[TrajectoryImage],
    masks: tuple[ObjectMask, ...],
) -> tuple[FurtherCall, Seen | ActionError]:
    record = FurtherCall(call)
    if call.name not in protocol.toolbox:
        return record, ActionError("unknown_tool", f"The tools are {', '.join(protocol.toolbox) or 'none'}.")
    if not 0 <= call.image < len(images):
        return record, ActionError("bad_image", f"Images are 0 to {len(images) - 1}.")
    image = images[call.image]
    try:
        boxes, in_view = (_boxes(call, image, protocol.frame, frame) for frame in ("original", "model_input"))
    except ValueError:  # rounding in another frame made a box empty
        return record, ActionError("box_too_small", "A box is empty.")
    record = FurtherCall(call, boxes_model_input=_edges(in_view), boxes_original=_edges(boxes))
    height, width = images[0].size
    base, to_base = base_of(images, call.image)
    context = Context(
        image.pixels,
        boxes,
        view_pixels=height * width,
        masks=masks if call.image == GOLD_IMAGE else (),
        original=Original(sample.images[base], to_base) if base < len(sample.images) else None,
    )
    made = protocol.toolbox[call.name](context, **call.arguments)
    if isinstance(made, ActionError):
        return record, made
    if not isinstance(made, Observation):
        raise ConfigError(f"tool {call.name}: returned {type(made).__name__}, expected Observation or ActionError")
    if made.image is None:
        return record, Seen(made.text, [])
    try:
        return record, Seen(made.text, [Shown(made.image, processor.process(made.image), call.image, made.to_source)])
    except ImageError:
        return record, ActionError("bad_shape", "A region of this shape cannot be shown.")


def _boxes(call: ToolCall, image: TrajectoryImage, written: Frame, frame: Frame) -> tuple[Box, ...]:
    """Returns a call's boxes, which are written in one frame, in another frame of the image it acts on."""
    height, width = image.size
    return tuple(to_frame(Box(*box, frame=written), frame, image.pixels.size, (width, height)) for box in call.boxes)


def _edges(boxes: tuple[Box, ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(box.xyxy for box in boxes)
