"""Experts that search an image: the three questions they answer, and the answers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vitar_jax.episodes.regions import Box


@dataclass(frozen=True)
class ScoredBox:
    """A region that a scan returns: a box in frame "original", and the confidence in [0, 1] that it is abnormal.

    Raises:
      ValueError: If the box is in another frame, or the confidence is out of range.
    """

    box: Box
    confidence: float

    def __post_init__(self) -> None:
        if self.box.frame != "original":
            raise ValueError(f"box: got frame {self.box.frame!r}, expected 'original'")
        check_confidence(self.confidence)


@dataclass(frozen=True)
class Finding:
    """What drilling into a region shows: the confidence in [0, 1] that it is abnormal, and a sentence.

    Raises:
      ValueError: If the confidence is out of range.
    """

    confidence: float
    sentence: str

    def __post_init__(self) -> None:
        check_confidence(self.confidence)


def check_confidence(value: float) -> None:
    """Raises ValueError unless the value is a number from 0 to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= 1:
        raise ValueError(f"confidence: got {value!r}, expected a number from 0 to 1")


class Expert(ABC):
    """An expert of one sample. Several threads may ask experts of different samples at the same time.

    An expert answers the same question alike, because its answers are kept.
    """

    @property
    def scope(self) -> str:
        """Text that the answers depend on besides image, question and box: the name of a model and its settings.

        An expert that knows more than the image, such as annotations, names the sample here.
        """
        return ""

    @abstractmethod
    def scan(self, image: Image.Image) -> Sequence[ScoredBox]:
        """Returns all regions of the image that may be abnormal."""

    @abstractmethod
    def drill(self, image: Image.Image, region: Box) -> Finding:
        """Returns what a region of the image shows when it is enlarged."""

    @abstractmethod
    def answer(self, image: Image.Image, question: str, region: Box | None) -> str:
        """Returns the answer to a question: a letter, if the question lists options.

        Args:
          region: Region that the search found most likely to be abnormal; None if it looked at none.
        """
