"""Makes trajectories of conversations, for which other trainers' records have only messages."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vitar_jax.episodes.actions import ToolCall
from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.protocols import Protocol
from vitar_jax.episodes.regions import Box, Frame, to_frame
from vitar_jax.episodes.trajectory import Sampling, Trajectory, TrajectoryImage, Turn, UnrecordedImage
from vitar_jax.errors import ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.processing.sources import image_name, is_inline
from vitar_jax.report.spoken import Edges, Spoken, read_turn, split_images

UNKNOWN_SIDE = 448  # minimum side of the frame of an image whose size is unknown (pixels)
MAX_SIDE = 8192  # maximum of it; a model may write any number
_NONE: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Played:
    """A trajectory, and its score as recorded, from 0 to 1; None if it is unknown."""

    trajectory: Trajectory
    score: float | None


@dataclasses.dataclass(frozen=True)
class Context:
    """How to read a file's records, and what was found missing.

    Attributes:
      path: The file.
      protocol: Protocol whose parser reads turns. If None, turns are read as other trainers' recipes write them.
      frame: Frame of the boxes in turns.
      missing: Reasons why images that a record names cannot be opened, with their counts.
    """

    path: Path
    protocol: Protocol | None = None
    frame: Frame = "original"
    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    _members: Counter[str] = dataclasses.field(default_factory=Counter)
    _samples: dict[str, str] = dataclasses.field(default_factory=dict)

    def sample(self, key: str) -> str:
        """Returns the name of a sample that its record does not name: the file, and its number among the file's samples."""
        return self._samples.setdefault(key, f"{self.path.stem}-{len(self._samples)}")

    def member(self, group: str) -> int:
        """Returns the number of earlier records of a group in this file."""
        self._members[group] += 1
        return self._members[group] - 1

    def open(self, source: Any) -> Image.Image | None:
        """Opens an image that a record holds or names; None, after counting it, if it cannot be opened. Fetches no URL."""
        if isinstance(source, Mapping):  # as Arrow stores images
            source = source.get("bytes") or source.get("path") or source.get("url")
        try:
            if isinstance(source, str) and not is_inline(source):
                if "://" in source and not source.startswith("file://"):
                    raise ImageError(f"{source[:100]}: is a URL, which is not fetched")
                source = self.path.parent / source.removeprefix("file://")
            if not isinstance(source, str | Path | bytes):
                return None
            return open_image(source, name="" if isinstance(source, bytes) else image_name(source))
        except ImageError as error:
            self.missing[str(error)] += 1
            return None


@dataclasses.dataclass(frozen=True)
class Said:
    """A message. `parts` are texts and images; None stands for an image that is not recorded."""

    role: str
    parts: tuple[str | Image.Image | None, ...]
    thought: str = ""
    calls: tuple[Any, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def images(self) -> list[Image.Image | None]:
        return [part for part in self.parts if not isinstance(part, str)]


def said(message: Mapping[str, Any], context: Context) -> Said:
    """Reads a message in the form of chat completions, and of TRL's and rLLM's data sets.

    Raises:
      ValueError: If it is not a message.
    """
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str | list | None):
        raise ValueError("got a message without role and content")
    parts: list[str | Image.Image | None] = [context.open(image) for image in message.get("images") or ()]
    for block in [content] if isinstance(content, str) else content or ():
        if isinstance(block, str):
            # Images beside the text are what its placeholders stand for.
            parts += [part for part in split_images(block) if part is not None or not message.get("images")]
        elif not isinstance(block, Mapping):
            raise ValueError("got a part of a message that is neither text nor an object")
        elif block.get("type") in ("image", "image_url"):
            source = next((block[key] for key in ("image", "image_url", "source", "path", "url") if block.get(key)), None)
            parts.append(context.open(source))
        elif isinstance(text := block.get("text"), str):
            parts.append(text)
        else:
            parts.append(f"[{block.get('type')}]")
    thought = next((value for key in ("reasoning_content", "reasoning") if isinstance(value := message.get(key), str)), "")
    calls = message.get("tool_calls")
    return Said(role, tuple(parts), thought, tuple(calls) if isinstance(calls, list) else ())


def played(
    messages: Sequence[Said],
    context: Context,
    *,
    sample_id: str,
    group_id: str = "",
    member: int | None = None,
    protocol: str,
    policy_version: int = 0,
    options: tuple[tuple[str, str], ...] = (),
    answer: Any = None,
    rewards: Mapping[str, float] = _NONE,
    advantage: float | None = None,
    score: float | None = None,
    end_reason: str = "",
    metadata: Mapping[str, Any] = _NONE,
) -> Played:
    """Returns the trajectory of a conversation. Each message of the assistant is a turn; others answer the turn before.

    The last user message before the first turn is the question, and messages before that are `metadata["before"]`.

    Args:
      member: Index in the group (default: the number of earlier records of the group in the file).
      protocol: Name of the form of the record.
      answer: The correct answer, if it is a text or a number.
      score: The recorded score. If None, the answers are compared, if both are known.

    Raises:
      ValueError: If the conversation has no turn.
    """
    first = next((n for n, message in enumerate(messages) if message.role == "assistant"), None)
    if first is None:
        raise ValueError("got a conversation without a message of the assistant")
    asked = next((n for n in reversed(range(first)) if messages[n].role == "user"), first)
    question = messages[asked].text if asked < first else ""
    shown: list[tuple[Image.Image | None, int | None]] = [(image, None) for one in messages[:first] for image in one.images]
    spoken: list[Spoken] = []
    turns: list[Turn] = []
    for message in messages[first:]:
        if message.role == "assistant":
            spoken.append(read_turn(message.text, message.thought, message.calls, context.protocol))
            turns.append(Turn(0, 0, message.text, spoken[-1].thought, spoken[-1].action))
            continue
        observation = "\n".join(filter(None, (turns[-1].observation, message.text)))
        seen = len(shown) if message.images and turns[-1].image is None else turns[-1].image
        turns[-1] = dataclasses.replace(turns[-1], observation=observation, image=seen)
        shown += [(image, len(turns) - 1) for image in message.images]
    if (acted := max((one.on for one in spoken if one.boxes), default=-1)) >= len(shown):
        shown += [(None, None)] * (acted + 1 - len(shown))  # a frame for boxes on an image of which the record has no trace
    images = []
    for number, (image, turn) in enumerate(shown):
        on_it = (box for one in spoken if one.on == number for box in one.boxes)
        images.append(_image(image, turn, on_it, context.frame))
    turns = [_with_boxes(turn, one, images, context.frame) for turn, one in zip(turns, spoken, strict=True)]
    predicted = spoken[-1].answer
    gold = str(answer) if isinstance(answer, str | int | float) and not isinstance(answer, bool) else ""
    if score is None and gold and predicted is not None:
        score = float(exact_match(predicted, gold))
    before = [[one.role, one.text] for n, one in enumerate(messages[:first]) if n != asked and one.text]
    trajectory = Trajectory(
        sample_id=sample_id,
        group_id=group_id or sample_id,
        member=context.member(group_id or sample_id) if member is None else member,
        stream="on_policy",
        policy_version=policy_version,
        protocol=protocol,
        sampling=Sampling(),
        banned_sha256="",
        question=question,
        options=options,
        answer=gold,
        boxes=(),
        token_ids=(),
        loss_mask=(),
        logprobs=(),
        position_ids=((), (), ()),
        vision_index=(),
        images=tuple(images),
        turns=tuple(turns),
        predicted_answer=predicted,
        end_reason=end_reason or ("answered" if predicted is not None else "unfinished"),
        rewards=dict(rewards),
        advantage=advantage,
        metadata=dict(metadata) | ({"before": before} if before else {}),
    )
    return Played(trajectory, score)


def _image(image: Image.Image | None, turn: int | None, boxes: Iterable[Edges], frame: Frame) -> TrajectoryImage:
    if image is not None:
        return TrajectoryImage(image, (0, 0, 0), (image.height, image.width), turn)
    return unrecorded(boxes if frame in ("original", "model_input") else (), turn)


def unrecorded(boxes: Iterable[Sequence[float]], turn: int | None) -> UnrecordedImage:
    """Returns the frame of an image that is not recorded, which contains all boxes on it (pixels)."""
    edges = list(boxes)
    width, height = (math.ceil(min(max([UNKNOWN_SIDE, *(box[side] for box in edges)]), MAX_SIDE)) for side in (2, 3))
    return UnrecordedImage(Image.new("L", (width, height)), (0, 0, 0), (height, width), turn)


def _with_boxes(turn: Turn, spoken: Spoken, images: Sequence[TrajectoryImage], frame: Frame) -> Turn:
    """Adds the boxes of a turn. Leaves out a box that has no extent in pixels."""
    if not spoken.boxes:
        return turn
    image = images[spoken.on]
    found = []
    for edges in spoken.boxes:
        try:
            found.append(to_frame(Box(*edges, frame=frame), "original", image.pixels.size, image.pixels.size).xyxy)
        except ValueError:
            continue
    call = ToolCall(str((turn.action or {}).get("name")), spoken.boxes, spoken.on)
    return dataclasses.replace(turn, boxes_original=tuple(found), boxes_model_input=spoken.boxes, call=call)
