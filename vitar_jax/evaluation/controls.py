"""Controls: the accuracy that remains on changed images, or with a box that the model did not choose.

An image control is an intervention on a sample (`data/interventions.py`). A box control writes the first turn in place of the
model, so that the tool returns the region that the control chose. The model continues from there.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from vitar_jax.data.interventions import Change, Given, find_change, label, seed_of, takes_outlines
from vitar_jax.data.sources import Source
from vitar_jax.episodes.episode import Episode
from vitar_jax.episodes.experts import write_look
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Box, Mask, clip, region_to_json
from vitar_jax.episodes.sample import Look
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.evaluation.outcomes import played


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
    x, y = np.random.default_rng(seed_of(sample)).uniform((w / 2, h / 2), (width - w / 2, height - h / 2)).tolist()
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
      control: Intervention on the sample, such as "blank" or "blur:4"; "" shows the sample's own images.
      look: Source of the box that the first turn looks at.
      thought: Thought of a first turn that the model did not write, given its first box.
      of: Name of the earlier evaluation whose masks the control acts on; "" if it acts on none.
      skip_missing: Whether samples that lack what the control needs are left out and counted. If not, they are an error.

    Raises:
      ConfigError: If the control does not exist, or lacks an argument or an earlier evaluation.
    """

    protocol: str = ""
    forced: bool = False
    control: str = ""
    look: Literal["model", "truth", "random", "none"] = "model"
    thought: Callable[[Box], str] = _plain_thought
    of: str = ""
    skip_missing: bool = False

    def __post_init__(self) -> None:
        if self.of and not takes_outlines(self.control):
            raise ConfigError(f"of: {self.of!r} has no effect on control {self.control!r}, which acts on no model's masks")
        if self.control:
            find_change(self.control, Given(outlined={} if self.of else None))  # raises ConfigError if there is none

    @property
    def name(self) -> str:
        """Suffix of the folder's name; empty for the plain evaluation."""
        parts = [Path(self.protocol.rpartition(":")[2]).stem, "forced" if self.forced else "", label(self.control)]
        parts += [f"of_{self.of}" if self.of else "", self.settings.get("look", "")]
        return "-".join(filter(None, parts))

    @property
    def settings(self) -> dict[str, str]:
        """Active controls, as recorded in the settings of an evaluation."""
        values = {"control": self.control, "of": self.of, "look": "" if self.look == "model" else self.look}
        return {key: value for key, value in values.items() if value}

    def play_under(self, protocol: Protocol) -> Protocol:
        """Returns the protocol, changed as this variant requires.

        Raises:
          ConfigError: If the variant chooses a box and the protocol has no tool that takes one.
        """
        if self.look != "model":
            look_tool(protocol)
        return dataclasses.replace(protocol, early_answer=False) if self.forced else protocol

    def intervene(self, source: Source, count: int, earlier: Path) -> tuple[Change | None, dict[str, str]]:
        """Returns the image control, or None without one, and the settings to record.

        Args:
          source, count: The first `count` samples of `source` may lend their images.
          earlier: Folder of the evaluation `of`. The settings have the hash of its masks.

        Raises:
          DataError: If the earlier evaluation has no masks.
        """
        if not self.control:
            return None, self.settings
        if not self.of:
            return find_change(self.control, Given(source, count)), self.settings
        outlined = outlined_masks(earlier)
        return find_change(self.control, Given(source, count, outlined)), self.settings | {"masks_sha256": _sha256(outlined)}

    def prepare(self, episode: Episode) -> None:
        """Writes the first turn if a box control is active."""
        if self.look != "model":
            put_look(LOOKS[self.look], self.thought)(episode)


def outlined_masks(directory: Path) -> dict[str, tuple[Mask, ...]]:
    """Returns the masks that the model outlined in the reasoning of an evaluation, by sample; without samples that have none.

    Raises:
      DataError: If the folder has no trajectories, or none with such masks.
    """
    found: dict[str, tuple[Mask, ...]] = {}
    for trajectory in played(directory):
        objects = [one for turn in trajectory.turns for one in turn.masks if one.part == "reasoning"]
        if masks := tuple(one.mask for one in objects if one.mask is not None and one.mask.area):
            found[trajectory.sample_id] = masks
    if not found:
        raise DataError(f"{directory}: no reasoning in this evaluation outlines anything")
    return found


def _sha256(masks: Mapping[str, tuple[Mask, ...]]) -> str:
    """Returns a SHA-256 of masks by sample, in any order."""
    values = {sample: [region_to_json(mask) for mask in found] for sample, found in masks.items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
