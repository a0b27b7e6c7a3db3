"""Traces: an expert's searches of an image, read from `traces.jsonl`. They depend on no tokenizer and no protocol.

    {"sample_id": "7", "image_sha256": "3f...", "search": 0, "steps": [
       {"mode": "scan", "box": null, "before": 0.0, "after": 0.4, "thought": "One region stands out."},
       {"mode": "drill", "box": [12.0, 30.0, 64.0, 80.0], "before": 0.4, "after": 0.9, "thought": "I look closer."}],
     "thought": "It is flat.", "answer": "B", "right": true, "end": "confident"}

Boxes are in pixels of the sample's first image as loaded. Each line is one search; a question has several. `python -m
data_prep.gaze` writes these files.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

from PIL import Image

from vitar_jax.episodes.regions import Box, inside, region_from_json, region_to_json
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.errors import DataError
from vitar_jax.processing.files import open_image, pixels_sha256
from vitar_jax.processing.sources import file_digest

Mode = Literal["scan", "drill"]

MODES: tuple[Mode, ...] = get_args(Mode)
JSONL = "traces.jsonl"
TOOL = "Gaze"


@dataclass(frozen=True)
class Step:
    """One question to the expert, and what it changed.

    Attributes:
      mode: "scan" searches the whole image, "drill" examines one region.
      box: Region that is enlarged at this step, in frame "original". A drill always has one. A scan has one only if the search
        looks at a scanned region without drilling.
      before, after: Confidence that the region is abnormal, in [0, 1], before and after the step. For a scan without a box,
        the highest confidence of the regions that are left to look at, or 0.
      thought: Text before the step. It states nothing that only this step shows.

    Raises:
      ValueError: If the mode is unknown, a drill has no box, the box is in another frame, or a confidence is out of range.
    """

    mode: Mode
    box: Box | None
    before: float
    after: float
    thought: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: got {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.box is None and self.mode == "drill":
            raise ValueError("box: a drill needs one")
        if self.box is not None and self.box.frame != "original":
            raise ValueError(f"box: got frame {self.box.frame!r}, expected 'original'")
        for name, value in (("before", self.before), ("after", self.after)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value!r}, expected a confidence from 0 to 1")


@dataclass(frozen=True)
class Trace:
    """One search by an expert.

    Attributes:
      image_sha256: Hash of mode, size and pixels of the sample's first image, as `TrajectoryImage.sha256`.
      search: Number of the search among those of its sample.
      thought: Text before the answer.
      answer: The expert's answer.
      right: Whether the answer equals the sample's.
      end: Why the search ended.
    """

    sample_id: str
    image_sha256: str
    search: int
    steps: tuple[Step, ...]
    thought: str
    answer: str
    right: bool
    end: str

    @property
    def looks(self) -> tuple[Step, ...]:
        """The steps that enlarge a region, in order. Each is one look of the demonstration."""
        return tuple(step for step in self.steps if step.box is not None)

    def demonstration(self) -> Demonstration:
        """Returns the search as looks of the tool `Gaze` at image 0, and the answer.

        The thought of a scan, which enlarges nothing, begins the thought of the next look, or of the answer.
        """
        looks: list[Look] = []
        pending: list[str] = []
        for step in self.steps:
            pending.append(step.thought)
            if step.box is not None:
                looks.append(Look(_joined(pending), TOOL, (step.box,)))
                pending = []
        return Demonstration(tuple(looks), Answer(_joined([*pending, self.thought]), self.answer))

    def to_json(self) -> dict[str, Any]:
        steps = [vars(step) | {"box": step.box and region_to_json(step.box)} for step in self.steps]
        return vars(self) | {"steps": steps}

    @classmethod
    def from_json(cls, value: Any) -> "Trace":
        """Reads a trace that `to_json` wrote.

        Raises:
          ValueError: If the value is malformed. The message names the key.
        """
        if not isinstance(value, dict):
            raise ValueError(f"got {value!r}, expected an object")
        sample_id, search = _key(value)
        steps, right = value.get("steps"), value.get("right")
        if not isinstance(steps, list):
            raise ValueError(f"steps: got {steps!r}, expected a list")
        if not isinstance(right, bool):
            raise ValueError(f"right: got {right!r}, expected true or false")
        texts = {name: _text(value.get(name), name) for name in ("image_sha256", "thought", "answer", "end")}
        read = tuple(_step(step, f"step {number}") for number, step in enumerate(steps))
        return cls(sample_id=sample_id, search=search, steps=read, right=right, **texts)


def _joined(thoughts: Iterable[str]) -> str:
    return " ".join(filter(None, thoughts))


def _step(value: Any, where: str) -> Step:
    try:
        if not isinstance(value, dict):
            raise ValueError(f"got {value!r}, expected an object")
        box = value.get("box")
        region = None if box is None else region_from_json(box)
        if not isinstance(region, Box | None):
            raise ValueError("box: got a mask, expected a box")
        thought = _text(value.get("thought"), "thought")
        return Step(value.get("mode", ""), region, value.get("before", -1), value.get("after", -1), thought)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _key(value: Any) -> tuple[str, int]:
    search = value.get("search")
    if isinstance(search, bool) or not isinstance(search, int) or search < 0:
        raise ValueError(f"search: got {search!r}, expected a number from 0")
    return _text(value.get("sample_id"), "sample_id"), search


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: got {value!r}, expected text")
    return value


def check_trace(trace: Trace, image: Image.Image, where: str) -> None:
    """Checks that a trace is of an image.

    Args:
      image: The sample's first image, as `open_image` returns it.
      where: Start of the error message.

    Raises:
      DataError: If the image has another hash, or a box lies outside it.
    """
    _check(trace, pixels_sha256(image), image.size, where)


def _check(trace: Trace, sha256: str, size: tuple[int, int], where: str) -> None:
    if trace.image_sha256 != sha256:
        raise DataError(
            f"{where}: sample {trace.sample_id!r}: its image has the hash {sha256[:16]}..., expected "
            f"{trace.image_sha256[:16]}..., of the image that the expert searched; make the traces again"
        )
    for number, step in enumerate(trace.steps):
        try:
            if step.box is not None:
                inside(step.box, size)
        except ValueError as error:
            raise DataError(f"{where}: step {number}: {error}") from error


class _Place(NamedTuple):
    search: int
    file: int
    line: int
    start: int  # byte


class Traces:
    """The searches of files of traces, by the sample's id. Keeps only where each line begins, and reads a line when asked.

    Args:
      paths: Files of traces, or folders that hold `traces.jsonl`.

    Raises:
      DataError: If a file is missing, a line is not a trace, or a search occurs twice. The message names file and line.
    """

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = tuple(Path(path) / JSONL if Path(path).is_dir() else Path(path) for path in paths)
        self._places: dict[str, list[_Place]] = {}
        for number, path in enumerate(self.paths):
            for sample_id, place in _index(path, number):
                self._places.setdefault(sample_id, []).append(place)
        for sample_id, places in self._places.items():
            places.sort()
            for first, second in zip(places, places[1:], strict=False):
                if first.search == second.search:
                    raise DataError(
                        f"{self._where(second)}: search {second.search} of sample {sample_id!r} occurs twice, first at "
                        f"{self._where(first)}"
                    )

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Yields the ids of the samples, in the order of the files."""
        return iter(self._places)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._places

    def __getitem__(self, sample_id: str) -> tuple[Trace, ...]:
        """Returns a sample's searches in order, or an empty tuple if there are none.

        Raises:
          DataError: If a line is malformed.
        """
        return tuple(trace for _, trace in self._read(sample_id))

    def check(self, sample: Sample, image: Image.Image | None = None) -> tuple[Trace, ...]:
        """Returns a sample's searches like `traces[sample.sample_id]`, and checks that they are of its first image.

        Args:
          image: The sample's first image as `open_image` returns it. If None, it is opened.

        Raises:
          DataError: If a line is malformed, the image has another hash, or a box lies outside it. The message names file
            and line.
          ImageError: If the image cannot be read.
        """
        found = self._read(sample.sample_id)
        if not found:
            return ()
        if image is None:
            if not sample.images:
                raise DataError(f"{self._where(found[0][0])}: sample {sample.sample_id!r} has no image")
            image = open_image(sample.images[0])
        sha256 = pixels_sha256(image)
        for place, trace in found:
            _check(trace, sha256, image.size, self._where(place))
        return tuple(trace for _, trace in found)

    def fingerprint(self) -> str:
        """Returns a hash of the size and the ends of each file."""
        return hashlib.sha256("\n".join(map(file_digest, self.paths)).encode()).hexdigest()

    def _read(self, sample_id: str) -> list[tuple[_Place, Trace]]:
        found = []
        with contextlib.ExitStack() as stack:
            opened: dict[int, BinaryIO] = {}
            for place in self._places.get(sample_id, ()):
                if place.file not in opened:
                    opened[place.file] = stack.enter_context(self.paths[place.file].open("rb"))
                opened[place.file].seek(place.start)
                found.append((place, self._trace(opened[place.file].readline(), sample_id, place)))
        return found

    def _trace(self, line: bytes, sample_id: str, place: _Place) -> Trace:
        try:
            trace = Trace.from_json(json.loads(line))
            if (trace.sample_id, trace.search) != (sample_id, place.search):
                raise ValueError("the file has changed since it was opened")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._where(place)}: {error}") from error
        return trace

    def _where(self, place: _Place) -> str:
        return f"{self.paths[place.file]}:{place.line}"


def _index(path: Path, file: int) -> Iterator[tuple[str, _Place]]:
    """Yields the sample's id and the place of each line. Ignores a truncated last line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file of traces; `python -m data_prep.gaze` writes one")
    start = 0
    with path.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError(f"got {line[:100]!r}, expected an object")
                sample_id, search = _key(value)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: {error}") from error
            yield sample_id, _Place(search, file, number, start)
            start += len(line)
