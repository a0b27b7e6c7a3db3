"""The question that an episode plays, and how an expert would have looked at it."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vitar_jax.episodes.boxes import Box
from vitar_jax.errors import DataError


@dataclass(frozen=True)
class Demonstration:
    """What an expert does on a sample: looks once with a tool, then answers.

    Attributes:
        thoughts: one a turn: the thought before the tool call, then the one before the answer.
        tool: "zoom" or "mark".
        boxes: where the tool is used, on image 0, in frame "original".
    """

    thoughts: tuple[str, ...]
    tool: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Sample:
    """One question about one or more images.

    Attributes:
        sample_id: unique within its data set, the same in every run.
        images: pictures, or paths to them.
        answer: the reference: a letter where there are options, otherwise text.
        options: (letter, text) pairs; empty for an open question.
        answers: All right answers, where several are; `answer` is one of them.
        boxes: where the answer is to be seen, on image 0, in frame "original"; empty where unknown.
        demonstration: an expert's way to the answer, where one is known.
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


def letters(options: Sequence[str], where: str) -> tuple[tuple[str, str], ...]:
    """Returns (letter, text) pairs; `where` begins the error's message.

    Raises:
        DataError: If there are more options than letters.
    """
    if len(options) > len(string.ascii_uppercase):
        raise DataError(f"{where}: got {len(options)} options, expected at most {len(string.ascii_uppercase)}")
    return tuple(zip(string.ascii_uppercase, options, strict=False))
