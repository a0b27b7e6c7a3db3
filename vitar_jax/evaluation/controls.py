"""Shortcut controls: what is left of an accuracy without the image, or with the box from elsewhere.

A control of the image maps a sample to another. A control of the box writes the first turn in the model's place, so that the
second look shows what the control chose; the model goes on from there.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitar_jax.data.sources import Source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.experts import write_look
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Box, clip
from vitar_jax.episodes.sample import Look, Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image, pixels_sha256

GREY = 128


def blank(sample: Sample) -> Sample:
    """The sample with every image grey all over, of the size that it had.

    Raises:
      ImageError: an image cannot be read.
    """
    return _with_images(sample, lambda image, _: Image.new(image.mode, image.size, (GREY,) * len(image.getbands())))


def wrong_image(source: Source, count: int) -> Callable[[Sample], Sample]:
    """Gives a sample the images of another of the first `count` of a source, always the same one, in the sizes of its own, so
    that tokens are as many.

    Raises, when what is returned is called:
      ImageError: an image cannot be read.
      DataError: no other sample has other images.
    """

    def change(sample: Sample) -> Sample:
        others = _other_images(sample, source, count)
        return _with_images(sample, lambda image, place: others[place % len(others)].resize(image.size))

    return change


def _plain_thought(box: Box) -> str:
    del box
    return "I look here."


def put_look(
    choose: Callable[[Episode], tuple[Box, ...]], thought: Callable[[Box], str] = _plain_thought
) -> Callable[[Episode], None]:
    """Writes the first turn of an episode: a look at boxes of ours on image 0, frame "original", instead of the model's.

    Args:
      choose: the boxes; the tool takes as many of the first as it can.
      thought: what the turn says of the first box.

    Raises, when what is returned is called:
      DataError: the sample has no image, or no box to choose.
    """

    def write(episode: Episode) -> None:
        if not episode.images:
            raise DataError(f"sample {episode.sample.sample_id}: has no image to look at")
        chat, tool = episode.processor.chat, look_tool(episode.protocol)
        boxes = choose(episode)[: episode.protocol.toolbox[tool].max_boxes]
        text = write_look(episode, Look(thought(boxes[0]), tool, boxes))
        episode.add_turn([*chat.text(text), chat.im_end], None, learn=False)

    return write


def look_tool(protocol: Protocol) -> str:
    """The first tool of a protocol that takes boxes.

    Raises:
      ConfigError: it has none.
    """
    for name, tool in protocol.toolbox.items():
        if tool.max_boxes:
            return name
    raise ConfigError(f"protocol {protocol.name}: has no tool that looks at a box")


def true_boxes(episode: Episode) -> tuple[Box, ...]:
    """The reference's boxes, as far as they lie on the image.

    Raises:
      DataError: the sample has none.
    """
    sample, size = episode.sample, episode.images[0].pixels.size
    if not sample.boxes:
        raise DataError(f"sample {sample.sample_id}: has no reference box to look at")
    try:
        return tuple(clip(box, size) for box in sample.boxes)
    except ValueError as error:
        raise DataError(f"sample {sample.sample_id}: {error}") from error


def random_box(episode: Episode) -> tuple[Box, ...]:
    """A box of the first reference's size, or else half as wide and high as the image, anywhere on it; always the same one for
    a sample."""
    sample, (width, height) = episode.sample, episode.images[0].pixels.size
    w, h = (sample.boxes[0].width, sample.boxes[0].height) if sample.boxes else (width / 2, height / 2)
    w, h = min(w, width), min(h, height)
    x, y = np.random.default_rng(_seed(sample)).uniform((w / 2, h / 2), (width - w / 2, height - h / 2)).tolist()
    return (Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2, "original"),)


def whole_image(episode: Episode) -> tuple[Box, ...]:
    """All of the image: a second look that shows nothing new."""
    return (Box(0, 0, *episode.images[0].pixels.size, "original"),)


LOOKS: dict[str, Callable[[Episode], tuple[Box, ...]]] = {"truth": true_boxes, "random": random_box, "none": whole_image}


@dataclasses.dataclass(frozen=True)
class Variant:
    """How an evaluation departs from the plain one; its results have a folder and settings of their own.

    Attributes:
      protocol: How samples are played, in place of the stage's protocol.
      forced: Whether every turn is played: an answer before the last is an error.
      control: What the model sees in place of its image.
      look: Whose box the first turn looks at.
      thought: What a first turn that is not the model's says of its first box (default: "I look here.").
    """

    protocol: str = ""
    forced: bool = False
    control: Literal["", "blank", "wrong_image"] = ""
    look: Literal["model", "truth", "random", "none"] = "model"
    thought: Callable[[Box], str] = _plain_thought

    @property
    def name(self) -> str:
        """What is added to the folder's name; empty for the plain evaluation."""
        parts = [Path(self.protocol.rpartition(":")[2]).stem, "forced" if self.forced else "", *self.settings.values()]
        return "-".join(filter(None, parts))

    @property
    def settings(self) -> dict[str, str]:
        """The controls, as an evaluation's settings hold them."""
        values = {"control": self.control, "look": "" if self.look == "model" else self.look}
        return {key: value for key, value in values.items() if value}

    def play_under(self, protocol: Protocol) -> Protocol:
        """Returns the protocol as this variant plays it.

        Raises:
          ConfigError: If the variant chooses a box and the protocol has no tool that takes one.
        """
        if self.look != "model":
            look_tool(protocol)
        return dataclasses.replace(protocol, early_answer=False) if self.forced else protocol

    def apply(self, sample: Sample, source: Source, count: int) -> Sample:
        """Returns the sample as it is played; other images come from the first `count` samples of its source."""
        if self.control == "blank":
            return blank(sample)
        return wrong_image(source, count)(sample) if self.control == "wrong_image" else sample

    def prepare(self, episode: Episode) -> None:
        """Writes the first turn, if it is not the model's."""
        if self.look != "model":
            put_look(LOOKS[self.look], self.thought)(episode)


def _other_images(sample: Sample, source: Source, count: int) -> list[Image.Image]:
    """The images of another sample, none of which this one has."""
    own = set(map(_content, sample.images))
    for index in np.random.default_rng(_seed(sample)).permutation(count):
        others = source[index].images
        if others and own.isdisjoint(map(_content, others)):
            return list(map(open_image, others))
    raise DataError(f"sample {sample.sample_id}: none of {count} samples has another image")


def _with_images(sample: Sample, change: Callable[[Image.Image, int], Image.Image]) -> Sample:
    images = tuple(change(open_image(image), place) for place, image in enumerate(sample.images))
    return dataclasses.replace(sample, images=images)


def _content(image: Image.Image | str) -> str:
    return image if isinstance(image, str) else pixels_sha256(image)


def _seed(sample: Sample) -> list[int]:
    return list(sample.sample_id.encode())
