"""Samples: the questions that episodes play, with demonstrations by experts."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vitar_jax.episodes.regions import Box, Mask, Region, region_from_json, region_to_json
from vitar_jax.errors import DataError
from vitar_jax.processing.sources import image_name

AnyImage = str | Path | Image.Image
PATIENT = ("patient", "patient_id", "subject_id")  # keys of metadata that identify the patient


@dataclass(frozen=True)
class Look:
    """A turn of a demonstration that uses a tool.

    Attributes:
      thought: The thought before the tool call.
      regions: Regions of the image that the tool acts on. A protocol that writes boxes writes the bounding box of a mask.
      image: Index of the image that the tool acts on. The sample's images come first, then the images of earlier looks.
      arguments: The tool's other arguments.
    """

    thought: str
    tool: str
    regions: tuple[Region, ...] = ()
    image: int = 0
    arguments: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The last turn of a demonstration: a thought and the text of the answer."""

    thought: str
    text: str


@dataclass(frozen=True)
class Demonstration:
    """An expert's turns on a sample: any number of looks, then an answer."""

    looks: tuple[Look, ...]
    answer: Answer

    def to_json(self) -> dict[str, Any]:
        looks = [vars(look) | {"regions": [region_to_json(region) for region in look.regions]} for look in self.looks]
        return {"looks": looks, "answer": vars(self.answer)}

    @classmethod
    def from_json(cls, value: Any, answer: str) -> "Demonstration":
        """Reads a demonstration that `to_json` wrote.

        Also reads two older forms, which have at most one look: {"thoughts": [...], "tool": ..., "boxes": [...]}, and the list
        of these three values.

        Args:
          answer: The sample's answer, used if the demonstration has none.

        Raises:
          ValueError: If the value is malformed.
        """
        if isinstance(value, list) and len(value) == 3:
            value = dict(zip(("thoughts", "tool", "boxes"), value, strict=True))
        forms = {"looks", "answer"}, {"thoughts", "tool", "boxes"}
        if not isinstance(value, dict) or not any(value.keys() >= form for form in forms):
            raise ValueError(f"got {value!r}, expected an object with looks and answer, or with thoughts, tool and boxes")
        if "looks" not in value:
            return cls._from_thoughts(value, answer)
        looks, last = value["looks"], value["answer"]
        if not isinstance(looks, list) or not all(isinstance(look, dict) for look in [*looks, last]):
            raise ValueError("looks must be a list of objects, and answer an object")
        return cls(
            tuple(_look(look, f"look {number}") for number, look in enumerate(looks)),
            Answer(_text(last.get("thought", ""), "answer: thought"), _text(last.get("text", answer), "answer: text")),
        )

    @classmethod
    def _from_thoughts(cls, value: Mapping[str, Any], answer: str) -> "Demonstration":
        thoughts = value["thoughts"].split("|") if isinstance(value["thoughts"], str) else value["thoughts"]
        if not isinstance(thoughts, list) or not thoughts:
            raise ValueError("thoughts are missing")
        first, last = _text(thoughts[0], "thoughts"), _text(thoughts[-1], "thoughts")
        regions = _regions(value["boxes"], "boxes")
        looks = (Look(first, _text(value["tool"], "tool"), regions),) if value["tool"] else ()
        return cls(looks, Answer(last, answer))


def _look(value: Mapping[str, Any], where: str) -> Look:
    image, arguments = value.get("image", 0), value.get("arguments", {})
    if isinstance(image, bool) or not isinstance(image, int) or image < 0:
        raise ValueError(f"{where}: image is {image!r}, expected an index")
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: arguments are {arguments!r}, expected an object")
    return Look(
        thought=_text(value.get("thought", ""), f"{where}: thought"),
        tool=_text(value.get("tool"), f"{where}: tool"),
        regions=_regions(value.get("regions", []), f"{where}: regions"),
        image=image,
        arguments=arguments,
    )


def _regions(values: Any, where: str) -> tuple[Region, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{where}: got {values!r}, expected a list")
    try:
        return tuple(region_from_json(value) for value in values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: got {value!r}, expected text")
    return value


@dataclass(frozen=True)
class SegmentedObject:
    """An object on image 0 that the reasoning or the answer of a sample mentions.

    Attributes:
      name: The name by which the demonstration mentions it, for example "obj1".
      mask: Its pixels, in frame "original".
      in_reasoning, in_answer: Whether it is one of the objects that the reasoning, or the answer, should show.
    """

    name: str
    mask: Mask
    caption: str = ""
    in_reasoning: bool = False
    in_answer: bool = False

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"mask": region_to_json(self.mask)}

    @classmethod
    def from_json(cls, value: Any) -> "SegmentedObject":
        """Reads an object that `to_json` wrote.

        Raises:
          ValueError: If the value is malformed.
        """
        if not isinstance(value, dict) or not isinstance(mask := region_from_json(value.get("mask")), Mask):
            raise ValueError(f"got {value!r}, expected an object with a mask")
        values: dict[str, Any] = {**value, "mask": mask}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"got an object with the keys {', '.join(value)} ({error})") from error


@dataclass(frozen=True)
class Sample:
    """One question about one or more images.

    Attributes:
      sample_id: Id that is unique in the data set and the same in every run.
      images: Images, or texts that name them: paths, also with a frame, data URIs or base64 (`processing.sources`). The model
        sees 8 bits. Tools also find the CT values and spacing of a DICOM file, and CT values in images of mode "I" or "F".
      answer: The reference answer: a letter if there are options, otherwise text.
      options: (letter, text) pairs; empty for an open question.
      boxes: Boxes on image 0 that show the answer, in frame "original"; empty if unknown.
      metadata: Further values from the data set.
      demonstration: An expert's turns that lead to the answer, or None.
      answers: All correct answers, if there are several; `answer` is one of them.
      objects: Objects with masks on image 0.
    """

    sample_id: str
    question: str
    images: tuple[Image.Image | str, ...]
    answer: str
    options: tuple[tuple[str, str], ...] = ()
    boxes: tuple[Box, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    demonstration: Demonstration | None = None
    answers: tuple[str, ...] = ()
    objects: tuple[SegmentedObject, ...] = ()

    @property
    def gold_answers(self) -> tuple[str, ...]:
        """All correct answers; (`answer`,) if there is only one."""
        return self.answers or (self.answer,)


def letters(options: Sequence[str], where: str) -> tuple[tuple[str, str], ...]:
    """Returns (letter, text) pairs.

    Args:
      where: Start of the error message.

    Raises:
      DataError: If there are more options than letters.
    """
    if len(options) > len(string.ascii_uppercase):
        raise DataError(f"{where}: got {len(options)} options, expected at most {len(string.ascii_uppercase)}")
    return tuple(zip(string.ascii_uppercase, options, strict=False))


def question_sample(images: AnyImage | Sequence[AnyImage], question: str, options: Sequence[str] = ()) -> Sample:
    """Returns a sample of a question that is not from a data set. Its id is the first image file, if there is one."""
    several = [images] if isinstance(images, AnyImage) else images
    opened = tuple(image if isinstance(image, Image.Image) else str(image) for image in several)
    name = next((image_name(image) for image in opened if isinstance(image, str)), "question")
    return Sample(name, question, opened, "", letters(options, "options"))
