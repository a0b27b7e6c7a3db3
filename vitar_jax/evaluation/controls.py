"""Shortcut controls: the accuracy that remains without the image, or with a box that the model did not choose.

An image control replaces a sample's images. A box control writes the first turn in place of the model, so that the tool
returns the region that the control chose. The model continues from there.
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
from vitar_jax.processing.sources import split_frame

GREY = 128


def blank(sample: Sample) -> Sample:
    """Replaces each image of a sample by a uniformly grey one of the same size.

    Raises:
      ImageError: If an image cannot be read.
    """
    return _with_images(sample, lambda image, _: Image.new(image.mode, image.size, (GREY,) * len(image.getbands())))


def wrong_image(source: Source, count: int) -> Callable[[Sample], Sample]:
    """Returns a function that replaces a sample's images by another sample's, from the first `count` samples of `source`.

    A sample is always paired with the same other sample, whose images are resized to the sample's own sizes. The number of
    tokens therefore stays the same.

    The returned function raises:
      ImageError: If an image cannot be read.
      DataError: If no other sample has different images.
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
    """Returns a function that writes an episode's first turn in place of the model: a look at given boxes on image 0.

    Args:
      choose: Returns the boxes (frame "original"). Boxes beyond the tool's maximum are ignored.
      thought: Returns the turn's thought, given the first box.

    The returned function raises:
      DataError: If the sample has no image, or no box to choose.
    """

    def write(episode: Episode) -> None:
        if not episode.images:
            raise DataError(f"sample {episode.sample.sample_id}: has no image to look at")
        tool = look_tool(episode.protocol)
        boxes = choose(episode)[: episode.protocol.toolbox[tool].max_boxes]
        text = write_look(episode, Look(thought(boxes[0]), tool, boxes))
        episode.add_turn(episode.processor.chat.turn(text, episode.protocol.allowed_tokens), None, learn=False)

    return write


def look_tool(protocol: Protocol) -> str:
    """Returns the name of the protocol's first tool that takes boxes.

    Raises:
      ConfigError: If no tool takes boxes.
    """
    for name, tool in protocol.toolbox.items():
        if tool.max_boxes:
            return name
    raise ConfigError(f"protocol {protocol.name}: has no tool that takes a box")


def true_boxes(episode: Episode) -> tuple[Box, ...]:
    """Returns the gold boxes, clipped to the image.

    Raises:
      DataError: If the sample has no gold box, or one lies outside the image.
    """
    sample, size = episode.sample, episode.images[0].pixels.size
    if not sample.boxes:
        raise DataError(f"sample {sample.sample_id}: has no gold box to look at")
    try:
        return tuple(clip(box, size) for box in sample.boxes)
    except ValueError as error:
        raise DataError(f"sample {sample.sample_id}: {error}") from error


def random_box(episode: Episode) -> tuple[Box, ...]:
    """Returns a box of the first gold box's size at a random place, always the same for a sample.

    Without a gold box, it is half as wide and half as high as the image.
    """
    sample, (width, height) = episode.sample, episode.images[0].pixels.size
    w, h = (sample.boxes[0].width, sample.boxes[0].height) if sample.boxes else (width / 2, height / 2)
    w, h = min(w, width), min(h, height)
    x, y = np.random.default_rng(_seed(sample)).uniform((w / 2, h / 2), (width - w / 2, height - h / 2)).tolist()
    return (Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2, "original"),)


def whole_image(episode: Episode) -> tuple[Box, ...]:
    """Returns the whole image as the box, so that the tool returns nothing new."""
    return (Box(0, 0, *episode.images[0].pixels.size, "original"),)


LOOKS: dict[str, Callable[[Episode], tuple[Box, ...]]] = {"truth": true_boxes, "random": random_box, "none": whole_image}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant of an evaluation, with a results folder and settings of its own.

    Attributes:
      protocol: Protocol to play under (default: the stage's).
      forced: Whether every turn is played: an answer before the last turn is an error.
      control: Image control; "" shows the sample's own images.
      look: Source of the box that the first turn looks at.
      thought: Thought of a first turn that the model did not write, given its first box.
    """

    protocol: str = ""
    forced: bool = False
    control: Literal["", "blank", "wrong_image"] = ""
    look: Literal["model", "truth", "random", "none"] = "model"
    thought: Callable[[Box], str] = _plain_thought

    @property
    def name(self) -> str:
        """Suffix of the folder's name; empty for the plain evaluation."""
        parts = [Path(self.protocol.rpartition(":")[2]).stem, "forced" if self.forced else "", *self.settings.values()]
        return "-".join(filter(None, parts))

    @property
    def settings(self) -> dict[str, str]:
        """Active controls, as recorded in the settings of an evaluation."""
        values = {"control": self.control, "look": "" if self.look == "model" else self.look}
        return {key: value for key, value in values.items() if value}

    def play_under(self, protocol: Protocol) -> Protocol:
        """Returns the protocol, changed as this variant requires.

        Raises:
          ConfigError: If the variant chooses a box and the protocol has no tool that takes one.
        """
        if self.look != "model":
            look_tool(protocol)
        return dataclasses.replace(protocol, early_answer=False) if self.forced else protocol

    def apply(self, sample: Sample, source: Source, count: int) -> Sample:
        """Applies the image control; `wrong_image` takes images from the first `count` samples of `source`."""
        if self.control == "blank":
            return blank(sample)
        return wrong_image(source, count)(sample) if self.control == "wrong_image" else sample

    def prepare(self, episode: Episode) -> None:
        """Writes the first turn if a box control is active."""
        if self.look != "model":
            put_look(LOOKS[self.look], self.thought)(episode)


def _other_images(sample: Sample, source: Source, count: int) -> list[Image.Image]:
    """Returns the images of a sample that shares no image with this one."""
    own = set(map(_content, sample.images))
    for index in np.random.default_rng(_seed(sample)).permutation(count):
        others = source[index].images
        if others and own.isdisjoint(map(_content, others)):
            return list(map(open_image, others))
    raise DataError(f"sample {sample.sample_id}: none of {count} samples has different images")


def _with_images(sample: Sample, change: Callable[[Image.Image, int], Image.Image]) -> Sample:
    images = tuple(change(open_image(image), place) for place, image in enumerate(sample.images))
    return dataclasses.replace(sample, images=images)


def _content(image: Image.Image | str) -> str:
    return split_frame(image)[0] if isinstance(image, str) else pixels_sha256(image)  # frames of one file are alike


def _seed(sample: Sample) -> list[int]:
    return list(sample.sample_id.encode())
