"""The token record of an episode, and its form as JSON."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from vitar_jax.episodes.actions import ToolCall
from vitar_jax.episodes.affine import IDENTITY, Affine
from vitar_jax.episodes.object_masks import ObjectMask
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import SegmentedObject
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.banned import check_learnable

if TYPE_CHECKING:  # JAX and pydicom, which the processes of rewards do without
    from vitar_jax.processing.packing import Example
    from vitar_jax.processing.processor import Processor

Stream = Literal["on_policy", "counterfactual", "expert"]  # the second: the policy on a sample without its image
GOLD_IMAGE = 0  # index of the sample's image that its gold boxes are on


def load_pixels(path: Path) -> Image.Image:
    with Image.open(path) as file:
        file.load()
        return file


@dataclasses.dataclass(frozen=True)
class TrajectoryImage:
    """One image of an episode, before it is resized for the model.

    Attributes:
      pixels: The image, RGB or grey, 8 bits.
      grid_thw: Number of patches in time, height and width after resizing.
      size: (height, width) after resizing, the space of boxes in frame "model_input".
      turn: Index of the turn whose tool returned the image; None for an image of the sample.
      source: Index of the image that the tool made it from; None for an image of the sample.
      to_source: Map from the image's pixels to the pixels of `source`; None if no map exists.
    """

    pixels: Image.Image
    grid_thw: tuple[int, int, int]
    size: tuple[int, int]
    turn: int | None = None
    source: int | None = None
    to_source: Affine | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of mode, size and pixels."""
        from vitar_jax.processing.files import pixels_sha256

        return pixels_sha256(self.pixels)


def base_of(images: Sequence[TrajectoryImage], index: int) -> tuple[int, Affine]:
    """Returns the index of the image that tools made an image from, through chains of edits, and the map to its pixels."""
    to_base = IDENTITY
    while (source := images[index].source) is not None and (step := images[index].to_source) is not None:
        index, to_base = source, step.after(to_base)
    return index, to_base


@dataclasses.dataclass(frozen=True)
class UnrecordedImage(TrajectoryImage):
    """An image that a record mentions but does not hold. `pixels` is blank; its size is a guess that contains all boxes."""


@dataclasses.dataclass(frozen=True)
class FurtherCall:
    """A tool call of a turn after its first one; `call` is None if it could not be read. For the attributes, see `Turn`."""

    call: ToolCall | None
    boxes_model_input: tuple[tuple[float, ...], ...] = ()
    boxes_original: tuple[tuple[float, ...], ...] = ()
    image: int | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """One generation by the model and its outcome.

    Attributes:
      start, end: The turn's tokens are `token_ids[start:end]`.
      action: Name and arguments as the model wrote them, or None.
      call: The tool call as parsed, or None.
      boxes_model_input, boxes_original: The call's boxes (x1, y1, x2, y2) in both frames of the image it acts on.
      error: (kind, message) of the turn's error, or None.
      image: Index of the image that the tool returned, or None.
      answer_tokens: (start, end) of the answer's tokens; None if the turn has no answer, or the answer was not located.
      masks: An entry for each `[SEG]` token of the turn, in order.
      further: The calls after the first one, in a protocol that plays several. Only the last call of a turn can have failed.
      observation: Text that answered the turn, in records of other trainers. Our own records have it only as tokens.
    """

    start: int
    end: int
    text: str
    thought: str | None = None
    action: dict[str, Any] | None = None
    boxes_model_input: tuple[tuple[float, ...], ...] = ()
    boxes_original: tuple[tuple[float, ...], ...] = ()
    error: tuple[str, str] | None = None
    image: int | None = None
    answer_tokens: tuple[int, int] | None = None
    call: ToolCall | None = None
    masks: tuple[ObjectMask, ...] = ()
    observation: str = ""
    further: tuple[FurtherCall, ...] = ()

    def to_json(self) -> dict[str, Any]:
        record = vars(self) | {"call": self.call and dataclasses.asdict(self.call)}
        record["masks"] = [mask.to_json() for mask in self.masks]
        record["further"] = [dataclasses.asdict(one) for one in self.further]
        return {name: value for name, value in record.items() if value or name not in ("masks", "observation", "further")}

    @property
    def per_call(self) -> tuple["Turn", ...]:
        """One turn for each call; the turn itself if it has at most one."""
        if not self.further:
            return (self,)
        others = [
            dataclasses.replace(
                self,
                action=one.call and {"name": one.call.name, "arguments": dict(one.call.arguments)},
                further=(),
                **{f.name: getattr(one, f.name) for f in dataclasses.fields(one)},
            )
            for one in self.further
        ]
        first = dataclasses.replace(self, further=())
        # Those before the last one ran.
        return *(dataclasses.replace(one, error=None) for one in (first, *others[:-1])), others[-1]

    @property
    def carried_out(self) -> bool:
        """Whether the turn called a tool on boxes and the tool ran."""
        return self.error is None and bool(self.boxes_original)

    @property
    def acted_on(self) -> int:
        """Index of the image that the turn's tool acts on; 0 if the turn calls no tool."""
        if self.call is not None:
            return max(self.call.image, 0)
        # Older records do not store calls.
        arguments = (self.action or {}).get("arguments")
        image = arguments.get("image", 0) if isinstance(arguments, dict) else 0
        return image if isinstance(image, int) and image >= 0 else 0


@dataclasses.dataclass(frozen=True)
class LookedAt:
    """The boxes that a turn looked at, on one of the sample's own images.

    Attributes:
      turn: Index of the turn.
      image: Index of the sample's image.
      boxes: Boxes on that image, in frame "original".
    """

    turn: int
    image: int
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings. Recorded log-probabilities are of the distribution before truncation by top_k, top_p and min_p.

    Attributes:
      temperature: 0 is greedy.
      top_k: Number of most likely tokens to keep; 0 keeps all.
      top_p: Probability mass of the most likely tokens to keep, after top_k (Holtzman et al., 2020).
      min_p: Lowest probability to keep, relative to the most likely token (Nguyen et al., 2024).
      stop_ids: Tokens that end a turn, in addition to `<|im_end|>`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    stop_ids: tuple[int, ...] = ()

    def stopping_at(self, token_ids: Sequence[int]) -> "Sampling":
        """Returns settings with further stop ids."""
        return dataclasses.replace(self, stop_ids=tuple(dict.fromkeys((*token_ids, *self.stop_ids))))

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise ConfigError(f"{self}: expected temperature and top_k of at least 0, top_p in (0, 1], min_p in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """An episode as tokens. The lists from `token_ids` to `vision_index` have one entry per token.

    Attributes:
      group_id: Group that advantages are computed over, unique within a training step; `member` is the index in it.
      loss_mask: 1 for tokens that the policy wrote, otherwise 0.
      logprobs: Log-probabilities under the sampling distribution; None for tokens that the policy did not sample.
      position_ids: Three lists: time, height, width.
      vision_index: Index of an image token's feature among the features of all images, in order; -1 for text.
      banned_sha256: Hash of the banned set that the tokens were sampled with.
      rewards: Weighted reward parts by name; None if a part could not be computed.
      advantage: Advantage in the objective; None if the objective did not use the trajectory.
      metadata: The data set's metadata of the sample, as JSON values.
      answers: All correct answers, if there are several; `answer` is one of them.
      sample_sha256: Hash of the sample, by which a resumed run knows it again; empty if unknown.
      objects: The sample's objects with masks on image 0.
    """

    sample_id: str
    group_id: str
    member: int
    stream: Stream
    policy_version: int
    protocol: str
    sampling: Sampling
    banned_sha256: str
    question: str
    options: tuple[tuple[str, str], ...]
    answer: str
    boxes: tuple[Box, ...]
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    position_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    vision_index: tuple[int, ...]
    images: tuple[TrajectoryImage, ...]
    turns: tuple[Turn, ...]
    predicted_answer: str | None
    end_reason: str
    rewards: dict[str, float] | None = dataclasses.field(default_factory=dict)
    advantage: float | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    answers: tuple[str, ...] = ()
    sample_sha256: str = ""
    objects: tuple[SegmentedObject, ...] = ()

    @property
    def gold_answers(self) -> tuple[str, ...]:
        """All correct answers; (`answer`,) if there is only one."""
        return self.answers or (self.answer,)

    @property
    def reward(self) -> float:
        """The sum of the reward parts; NaN if a part could not be computed."""
        return math.nan if self.rewards is None else sum(self.rewards.values())

    @property
    def cut_off(self) -> bool:
        """Whether the episode reached a limit, or its last turn exhausted its budget."""
        error = self.turns[-1].error if self.turns else None
        return self.end_reason == "overflow" or (error is not None and error[0] == "too_long")

    @property
    def first_look(self) -> LookedAt | None:
        """The first turn whose tool ran on boxes, with its boxes; None if no tool ran on boxes."""
        for number, turn in enumerate(self.turns):
            for one in turn.per_call:
                if one.carried_out:
                    return LookedAt(number, *self.looked_at(one))
        return None

    def looked_at(self, turn: Turn) -> tuple[int, tuple[Box, ...]]:
        """Maps the boxes of a turn to the sample's own image, through chains of edits.

        Returns:
          The index of that image, and the boxes in its frame "original". If no map leads back to an image of the sample, the
          image is the last one that maps lead to.
        """
        base, to_base = self.to_base(turn.acted_on)
        return base, tuple(Box(*to_base.box(corners), frame="original") for corners in turn.boxes_original)

    def boxes_on(self, index: int, base: int, boxes: Iterable[Box]) -> tuple[Box, ...]:
        """Maps boxes of image `base` to image `index`, which tools may have made from it. Boxes may extend beyond that image.

        Returns:
          The boxes in frame "original" of image `index`; empty if that image was made from another one.
        """
        found, to_base = self.to_base(index)
        if found != base:
            return ()
        from_base = to_base.inverse()
        return tuple(Box(*from_base.box(box.xyxy), frame="original") for box in boxes)

    def to_base(self, index: int) -> tuple[int, Affine]:
        """Returns the index of the image that tools made an image from, through chains of edits, and the map to its pixels."""
        return base_of(self.images, index)

    def example(self, processor: "Processor", **extras: np.ndarray) -> "Example":
        """Returns the record as a training example, equal to `Episode.example` of the live episode. Reprocesses the images.

        Raises:
          DataError: If the processor resizes the images to other sizes than recorded, or if a token under the loss mask is
            banned.
        """
        from vitar_jax.processing.packing import Example

        patches = []
        for number, image in enumerate(self.images):
            seen = processor.process(image.pixels)
            if (seen.grid_thw, seen.size) != (image.grid_thw, image.size):
                raise DataError(
                    f"trajectory {self.sample_id}: image {number}: got grid {seen.grid_thw} from this processor, "
                    f"expected {image.grid_thw} as recorded"
                )
            patches.append(seen.patches)
        features = sum(processor.tokens(image.grid_thw) for image in self.images)
        if features != sum(index >= 0 for index in self.vision_index):
            raise DataError(f"trajectory {self.sample_id}: got {features} image tokens from this processor, not as recorded")
        token_ids, loss_mask = np.array(self.token_ids, np.int32), np.array(self.loss_mask, bool)
        check_learnable(self.sample_id, token_ids, loss_mask, processor.chat, stop_ids=self.sampling.stop_ids)
        return Example(
            name=self.sample_id,
            token_ids=token_ids,
            loss_mask=loss_mask,
            position_ids=np.array(self.position_ids, np.int32),
            vision_index=np.array(self.vision_index, np.int32),
            patches=tuple(patches),
            grids=tuple(image.grid_thw for image in self.images),
            content_ids=tuple(image.sha256 for image in self.images),
            extras=extras,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the record without pixels, in which images are identified by hash. Leaves out empty newer fields."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record = {name: value for name, value in record.items() if value or name not in _NEWER}
        record["images"] = [_image_to_json(image) for image in self.images]
        if self.objects:
            record["objects"] = [one.to_json() for one in self.objects]
        return record | {
            "sampling": dataclasses.asdict(self.sampling),
            "boxes": [dataclasses.asdict(box) for box in self.boxes],
            "turns": [turn.to_json() for turn in self.turns],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], images: Path, load: Callable[[Path], Image.Image] = load_pixels) -> "Trajectory":
        """Reads a record that `to_json` wrote. `load` reads the pixels from `images/<sha256>.png`."""
        turns = tuple(_turn_from_json(turn) for turn in record["turns"])
        return cls(
            **record
            | {
                "sampling": Sampling(**record["sampling"] | {"stop_ids": _tuples(record["sampling"]["stop_ids"])}),
                "options": _tuples(record["options"]),
                "answers": _tuples(record.get("answers", [])),
                "boxes": tuple(Box(**box) for box in record["boxes"]),
                "images": _images_from_json(record["images"], turns, lambda sha256: load(images / f"{sha256}.png")),
                "turns": turns,
                "objects": tuple(SegmentedObject.from_json(one) for one in record.get("objects", [])),
            }
            | {name: _tuples(record[name]) for name in _PER_TOKEN}
        )


def _image_to_json(image: TrajectoryImage) -> dict[str, Any]:
    values = {f.name: getattr(image, f.name) for f in dataclasses.fields(image) if f.name != "pixels"}
    return {"sha256": image.sha256} | values | {"to_source": image.to_source and dataclasses.astuple(image.to_source)}


def _images_from_json(
    records: list[dict[str, Any]], turns: Sequence[Turn], load: Callable[[str], Image.Image]
) -> tuple[TrajectoryImage, ...]:
    images: list[TrajectoryImage] = []
    for record in records:
        image = TrajectoryImage(load(record["sha256"]), tuple(record["grid_thw"]), tuple(record["size"]), record["turn"])
        if "source" in record:
            step = record["to_source"]
            image = dataclasses.replace(image, source=record["source"], to_source=None if step is None else Affine(*step))
        elif image.turn is not None:
            image = _with_inferred_source(image, turns[image.turn])
        images.append(image)
    return tuple(images)


def _with_inferred_source(image: TrajectoryImage, turn: Turn) -> TrajectoryImage:
    """Infers the source and the map of an image from an older record: `zoom` crops, other tools draw."""
    crops = (turn.action or {}).get("name") == "zoom" and turn.boxes_original
    step = Affine.crop(Box(*turn.boxes_original[0], frame="original"), image.pixels.size) if crops else IDENTITY
    return dataclasses.replace(image, source=turn.acted_on, to_source=step)


def _turn_from_json(record: dict[str, Any]) -> Turn:
    turn = Turn(**{key: value if key in ("action", "call") else _tuples(value) for key, value in record.items()})
    masks = tuple(ObjectMask.from_json(mask) for mask in record.get("masks", []))
    further = tuple(
        FurtherCall(**{key: _call(value) if key == "call" else _tuples(value) for key, value in one.items()})
        for one in record.get("further", [])
    )
    return dataclasses.replace(turn, masks=masks, call=_call(record.get("call")), further=further)


def _call(record: Any) -> Any:
    return ToolCall(**record | {"boxes": _tuples(record["boxes"])}) if record else None


_NEWER = ("answers", "sample_sha256", "objects")
_PER_TOKEN = ("token_ids", "loss_mask", "logprobs", "position_ids", "vision_index")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def plain_value(value: Any) -> Any:
    """Returns a NumPy scalar as a Python number, for `json.dumps`."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
