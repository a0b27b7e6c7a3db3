"""Plays demonstrations: episodes whose turns an expert wrote."""

from vitar_jax.episodes.actions import Answer, ToolCall
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.object_tags import mentions
from vitar_jax.episodes.parsers import PARSERS
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Mask, bounding_box, to_frame
from vitar_jax.episodes.sample import Answer as LastTurn
from vitar_jax.episodes.sample import Demonstration, Look, Sample
from vitar_jax.errors import DataError, TooLongError
from vitar_jax.processing.processor import Processor


def demonstrate(sample: Sample, protocol: Protocol, processor: Processor, limits: Limits) -> Episode:
    """Plays a sample's demonstration. A protocol of one turn plays only its answer.

    Raises:
      DataError: If the sample has no demonstration or no answer, or a turn of the demonstration fails.
      TooLongError: If the demonstration needs more tokens or images than the limits allow.
    """
    episode = Episode(sample, protocol, processor, limits)
    play_demonstration(_demonstration(sample, protocol), episode)
    return episode


def play_demonstration(shown: Demonstration, episode: Episode) -> None:
    """Plays a demonstration to its end on an episode without turns. A protocol of one turn plays only its answer.

    Raises:
      DataError: If a turn of the demonstration fails.
      TooLongError: If the demonstration needs more tokens or images than the episode's limits allow.
    """
    protocol, sample_id = episode.protocol, episode.sample.sample_id
    looks = shown.looks if protocol.max_turns > 1 else ()
    for turn in (*looks, shown.answer):
        if episode.finished:
            break
        masks = []
        if isinstance(turn, Look):
            text = write_look(episode, turn)
            masks = _gold_masks(episode.sample, text) if protocol.makes_masks else []  # a look may show them
        else:
            text = protocol.write(turn.thought, Answer(turn.text))
        episode.add_turn(episode.processor.chat.turn(text, protocol.allowed_tokens), None, masks=masks)
        if error := episode.turns[-1].error:
            raise DataError(f"sample {sample_id}: its demonstration fails ({error[0]}): {text}")
    if episode.end_reason == "overflow":
        raise TooLongError(f"sample {sample_id}: its demonstration exceeds {episode.limits}")
    if episode.end_reason != "answered":
        raise DataError(f"sample {sample_id}: its demonstration ends with {episode.end_reason}")


def write_look(episode: Episode, look: Look) -> str:
    """Writes a look as a turn of the episode's protocol, with boxes rounded to integers in the protocol's frame.

    Boxes in frame "normalized" are rounded to three digits.

    Raises:
      DataError: If the episode does not have the image, or a region has no box on it.
    """
    if look.image >= len(episode.images):
        where = f"sample {episode.sample.sample_id}: look"
        raise DataError(f"{where}: got image {look.image}, expected one of the {len(episode.images)} images so far")
    image = episode.images[look.image]
    (height, width), frame = image.size, episode.protocol.frame
    digits = 3 if frame == "normalized" else 0
    boxes = []
    for region in look.regions:
        try:
            box = to_frame(bounding_box(region), frame, image.pixels.size, (width, height))
        except ValueError as error:  # an empty mask, or a box that rounding makes empty
            raise DataError(f"sample {episode.sample.sample_id}: look: {error}") from error
        x1, y1, x2, y2 = (round(edge, digits) for edge in box.xyxy)
        boxes.append((x1, y1, x2, y2))
    return episode.protocol.write(look.thought, ToolCall(look.tool, tuple(boxes), look.image, look.arguments))


def _gold_masks(sample: Sample, text: str) -> list[tuple[Mask, float]]:
    """Returns the mask of each object that a turn mentions, in order, with an IoU of 1."""
    masks = {one.name: one.mask for one in sample.objects}
    names = mentions(text)
    if missing := [name for name in names if name not in masks]:
        raise DataError(f"sample {sample.sample_id}: its trace mentions <{missing[0]}>, which has no mask")
    return [(masks[name], 1.0) for name in names]


def _demonstration(sample: Sample, protocol: Protocol) -> Demonstration:
    if sample.demonstration is not None:
        return sample.demonstration
    if PARSERS.find(protocol.parser).thoughts:
        raise DataError(f"sample {sample.sample_id}: no demonstration")
    if not sample.answer:
        raise DataError(f"sample {sample.sample_id}: no answer to demonstrate")
    return Demonstration((), LastTurn("", sample.answer))
