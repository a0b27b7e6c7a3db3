"""Episodes that an expert writes: the same record, from a sample's demonstration instead of a policy's tokens."""

from collections.abc import Sequence

from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.protocols import Protocol, write_turn
from vitar_jax.episodes.regions import Box, to_frame
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError, TooLongError
from vitar_jax.processing.processor import Processor


def demonstrate(sample: Sample, protocol: Protocol, processor: Processor, limits: Limits) -> Episode:
    """Plays a sample as its demonstration shows. A protocol of one turn shows the answer alone.

    Raises:
      DataError: the sample has no demonstration, or a turn of it is no legal turn.
      TooLongError: it takes more tokens or images than the limits allow.
    """
    episode = Episode(sample, protocol, processor, limits)
    for text in _turns(episode):
        if episode.finished:
            break
        episode.add_turn([*processor.chat.text(text), processor.chat.im_end], None)
        if error := episode.turns[-1].error:
            raise DataError(f"sample {sample.sample_id}: its demonstration fails ({error[0]}): {text}")
    if episode.end_reason == "overflow":
        raise TooLongError(f"sample {sample.sample_id}: its demonstration has no room in {limits}")
    if episode.end_reason != "answered":
        raise DataError(f"sample {sample.sample_id}: its demonstration ends with {episode.end_reason}")
    return episode


def write_look(episode: Episode, thought: str, tool: str, boxes: Sequence[Box]) -> str:
    """A turn that uses a tool on boxes of image 0, given in any frame, as whole numbers of the protocol's."""
    image = episode.images[0]
    height, width = image.size
    framed = [to_frame(box, episode.protocol.frame, image.pixels.size, (width, height)) for box in boxes]
    return write_turn(thought, tool, box=[[round(value) for value in box.xyxy] for box in framed])


def _turns(episode: Episode) -> list[str]:
    sample, shown = episode.sample, episode.sample.demonstration
    if episode.protocol.parser == "plain":
        return [sample.answer]
    if shown is None:
        raise DataError(f"sample {sample.sample_id}: it has no demonstration")
    turns = []
    if episode.protocol.max_turns > 1:
        turns.append(write_look(episode, shown.thoughts[0], shown.tool, shown.boxes))
    return [*turns, write_turn(shown.thoughts[-1], "Terminate", answer=sample.answer)]
