"""The kept answers of experts: `answers.jsonl`, under a hash of the image's pixels, the question and the box.

What was asked once is made again without the expert. A line is

    {"key": "5e...", "image": "3f...", "kind": "drill", "question": "", "box": [12.0, 30.0, 64.0, 80.0],
     "answer": [0.9, "It is flat."]}

A scan is answered by a list of [x1, y1, x2, y2, confidence], a drill by [confidence, sentence], and a question by text.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from data_prep.gaze.regions import Expert, Finding, ScoredBox
from vitar_jax.episodes.regions import Box, inside
from vitar_jax.errors import DataError
from vitar_jax.processing.files import pixels_sha256
from vitar_jax.runtime.crash_safe import atomic_replace, drop_tail

T = TypeVar("T")


class Answers:
    """A store of answers. Several threads may share it, only one process at a time.

    Args:
      path: File of the answers; None keeps them in memory.
      name: Name of the expert, so that experts with one file do not share answers.
      offline: Whether answers are only taken from the file.

    Raises:
      DataError: If a line of the file is malformed. The message names file and line.
    """

    def __init__(self, path: Path | None = None, *, name: str = "", offline: bool = False):
        self._path = path
        self._name = name
        self._offline = offline
        self._kept: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            drop_tail(path)
            self._load(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)

    def _load(self, path: Path) -> None:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                    key, answer = record["key"], record["answer"]
                    _READ[record["kind"]](answer)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: {error if isinstance(error, ValueError) else repr(error)}") from error
                self._kept[key], self._where[key] = answer, f"{path}:{number}"

    def close(self) -> None:
        """Sorts the file by key, so that its bytes do not depend on the order in which the answers came."""
        if self._file is None or self._path is None:
            return
        self._file.close()
        lines = sorted(set(self._path.read_bytes().splitlines(keepends=True)))
        with atomic_replace(self._path) as partial:
            partial.write_bytes(b"".join(lines))

    def of(self, expert: Expert, image: Image.Image, where: str) -> "Asked":
        """Returns the expert with its answers about an image kept here.

        Args:
          image: Image as `open_image` returns it.
          where: Start of error messages: the sample.
        """
        return Asked(self, expert, image, pixels_sha256(image), where)

    def get(self, fields: dict[str, Any], scope: str, ask: Callable[[], Any], read: Callable[[Any], T], where: str) -> T:
        """Returns a kept answer, or asks and keeps the answer.

        Args:
          fields: What the answer is kept under: image, kind of the question, question, box.
          ask: Returns the expert's answer as JSON.
          read: Reads an answer from JSON. Raises ValueError if it is invalid.

        Raises:
          DataError: If an answer is invalid, or is not kept and may not be asked for.
        """
        content = json.dumps([self._name, scope, *fields.values()])
        key = hashlib.sha256(content.encode()).hexdigest()
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:  # a concurrent equal question waits for this answer
            new = key not in self._kept
            if new and self._offline:
                asked = fields["question"] or f"a {fields['kind']}"
                raise DataError(f"{where}: the answer to {asked!r} is not kept; run once without --offline")
            try:
                answer = ask() if new else self._kept[key]
                made = read(answer)
            except ValueError as error:
                raise DataError(f"{self._where.get(key, where)}: {error}") from error
            if new:
                line = json.dumps({"key": key, **fields, "answer": answer}) + "\n"
                with self._lock:
                    self._kept[key] = answer
                    if self._file is not None:
                        self._file.write(line)
            return made


class Asked:
    """An expert that is asked about one image, whose answers are kept. Checks every answer.

    Raises:
      DataError: From each question, if an answer is invalid: a box outside the image, or a confidence outside [0, 1].
    """

    def __init__(self, answers: Answers, expert: Expert, image: Image.Image, sha256: str, where: str):
        self.image = image
        self.sha256 = sha256
        self._answers = answers
        self._expert = expert
        self._where = where

    def scan(self) -> tuple[ScoredBox, ...]:
        def ask() -> Any:
            return [[*found.box.xyxy, found.confidence] for found in self._expert.scan(self.image)]

        def read(answer: Any) -> tuple[ScoredBox, ...]:
            return tuple(ScoredBox(inside(found.box, self.image.size), found.confidence) for found in _scan_from(answer))

        return self._get("scan", "", None, ask, read)

    def drill(self, box: Box) -> Finding:
        def ask() -> Any:
            found = self._expert.drill(self.image, box)
            return [found.confidence, found.sentence]

        return self._get("drill", "", box, ask, _finding_from)

    def answer(self, question: str, box: Box | None) -> str:
        return self._get("answer", question, box, lambda: self._expert.answer(self.image, question, box), _text_from)

    def _get(self, kind: str, question: str, box: Box | None, ask: Callable[[], Any], read: Callable[[Any], T]) -> T:
        fields = {"image": self.sha256, "kind": kind, "question": question, "box": box and list(box.xyxy)}
        return self._answers.get(fields, self._expert.scope, ask, read, self._where)


def _scan_from(value: Any) -> Sequence[ScoredBox]:
    if not isinstance(value, list):
        raise ValueError(f"answer: got {value!r}, expected a list of regions")
    return [_scored_from(region) for region in value]


def _scored_from(value: Any) -> ScoredBox:
    try:
        x1, y1, x2, y2, confidence = value
        box = Box(float(x1), float(y1), float(x2), float(y2), "original")
    except (TypeError, ValueError) as error:
        raise ValueError(f"answer: got {value!r}, expected [x1, y1, x2, y2, confidence] ({error})") from error
    return ScoredBox(box, confidence)


def _finding_from(value: Any) -> Finding:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"answer: got {value!r}, expected [confidence, sentence]")
    return Finding(value[0], _text_from(value[1]))


def _text_from(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"answer: got {value!r}, expected text")
    return value


_READ: dict[str, Callable[[Any], object]] = {"scan": _scan_from, "drill": _finding_from, "answer": _text_from}
