"""Readers by name: each reads one form of record. A record is known by its keys, and its file by its first bytes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vitar_jax.episodes.answers import exact_match
from vitar_jax.episodes.trajectory import Trajectory, TrajectoryImage, load_pixels
from vitar_jax.evaluation.results import SCORES, VERDICTS, read_marks
from vitar_jax.report import atif, miles, rllm, trl, verl
from vitar_jax.report.conversation import Context, Played, unrecorded
from vitar_jax.runtime.registry import Registry


@dataclasses.dataclass(frozen=True)
class Reader:
    """A form of record.

    Attributes:
      matches: Whether a record has this form.
      read: Reads a record's trajectories. May raise any exception for a damaged record.
    """

    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Context], Iterable[Played]]


READERS: Registry[Reader] = Registry("reader")


def find_reader(record: Mapping[str, Any]) -> str | None:
    """Returns the name of the first reader that matches a record; None if no reader does."""
    return next((name for name, reader in READERS.items() if reader.matches(record)), None)


def is_own(record: Mapping[str, Any]) -> bool:
    return record.keys() >= {"sample_id", "group_id", "protocol", "token_ids", "turns", "end_reason"}


def read_own(record: Mapping[str, Any], context: Context) -> Iterator[Played]:
    """Reads a record of `episodes.trajectory_files`, whose images are in the folder `images` beside its file.

    Its score is that of `evaluate`, if it was scored. Otherwise the answers are compared, if there is a correct one.
    """
    folder = context.path.parent
    found = own_trajectory(dict(record), folder / "images", context)
    score = float(exact_match(found.predicted_answer, *found.gold_answers)) if found.answer else None
    yield Played(found, _marks(folder).get(found.sample_id, score))


@lru_cache(maxsize=8)
def _marks(folder: Path) -> Mapping[str, float | None]:
    """Returns the scores of a folder of `evaluate` under its primary rule, by sample; none of another folder."""
    return read_marks(folder)[1] if (folder / SCORES).exists() and (folder / VERDICTS).exists() else {}


def own_trajectory(record: dict[str, Any], folder: Path, context: Context) -> Trajectory:
    """Returns the trajectory of a record that `Trajectory.to_json` wrote. Images that are not there are unrecorded."""
    absent: list[Image.Image] = []

    def load(path: Path) -> Image.Image:
        try:
            return load_pixels(path)
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for damaged files
            context.missing[f"{path}: {error}"] += 1
            absent.append(Image.new("L", (1, 1)))
            return absent[-1]

    found = Trajectory.from_json(record, folder, load)
    lost = [any(image.pixels is one for one in absent) for image in found.images]
    images = [_lost(found, n) if is_lost else found.images[n] for n, is_lost in enumerate(lost)]
    return dataclasses.replace(found, images=tuple(images))


def _lost(trajectory: Trajectory, number: int) -> TrajectoryImage:
    """Returns the frame of an image whose file is lost, of which the record has only the size that the model saw."""
    image = trajectory.images[number]
    boxes = [box for turn in trajectory.turns if turn.acted_on == number for box in turn.boxes_original]
    boxes += [box.xyxy for box in trajectory.boxes] if number == 0 else []
    frame = unrecorded([*boxes, (0, 0, image.size[1], image.size[0])], image.turn)
    return dataclasses.replace(frame, source=image.source, to_source=image.to_source)


READERS["vitar_jax"] = Reader(is_own, read_own)
READERS["atif"] = Reader(atif.matches, lambda record, context: atif.read(record, context, own_trajectory))
READERS["rllm"] = Reader(rllm.matches, rllm.read)
READERS["miles"] = Reader(miles.matches, miles.read)
READERS["trl"] = Reader(trl.matches, trl.read)
READERS["verl"] = Reader(verl.matches, verl.read)
