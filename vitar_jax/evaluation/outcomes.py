"""Outcome of each sample of an evaluation, read from the files of its folder without opening images or a model.

`samples.jsonl` has one line per sample to be played, as in the data set. Trajectories exist only for samples that were played.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from vitar_jax.episodes.sample import PATIENT, Sample
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.episodes.trajectory_files import read_records
from vitar_jax.errors import DataError
from vitar_jax.evaluation.confidence import answer_probability
from vitar_jax.evaluation.extraction import Options
from vitar_jax.evaluation.mask_scores import MatchedMasks, MatchedObjects, gold_masks, match_objects
from vitar_jax.evaluation.rules import Kind
from vitar_jax.processing.files import pixels_sha256
from vitar_jax.processing.sources import image_name, split_frame
from vitar_jax.runtime.crash_safe import atomic_replace, read_json_lines

SAMPLES = "samples.jsonl"
REFERENCES = "reference.jsonl"  # log-probabilities of reference answers

Status = Literal[
    "answered",
    "unanswered",  # ended without an answer that could be parsed
    "truncated",  # ran out of tokens or images
    "failed",  # could not be played
]


@dataclasses.dataclass(frozen=True)
class SampleOutcome:
    """A sample and its outcome.

    Attributes:
      images: Identity of each image (path or content hash).
      answer: The gold answer; empty if the sample has none.
      answers: All gold answers, if there are several.
      prediction: The model's answer; empty without one.
      probability: See `answer_probability`.
      tokens: Number of tokens that the model wrote; 0 if the sample was not played.
      images_seen: Number of images in the model's context; 0 if the sample was not played.
      masks: The sample's objects with the masks of the episode; None if the sample has no objects.
    """

    sample_id: str
    question: str
    options: Options
    answer: str
    images: tuple[str, ...]
    metadata: Mapping[str, Any]
    answers: tuple[str, ...] = ()
    status: Status = "failed"
    prediction: str = ""
    probability: float | None = None
    tokens: int = 0
    images_seen: int = 0
    masks: MatchedObjects | None = None

    @property
    def has_gold(self) -> bool:
        """Whether the sample has a gold answer, so that rules can score it."""
        return bool(self.answer or self.answers)

    @property
    def kind(self) -> Kind | None:
        """The kind of question, from the data set's `answer_type`; None if it has none."""
        said = str(self.metadata.get("answer_type", "")).strip().lower()
        return "open" if said == "open" else "closed" if said == "closed" else None


def record_samples(samples: Iterable[Sample], directory: Path) -> Iterator[Sample]:
    """Yields the samples, and writes them to the folder after the last one."""
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_replace(directory / SAMPLES) as partial, partial.open("w") as file:
        for sample in samples:
            record = {name: getattr(sample, name) for name in ("sample_id", "question", "options", "answer", "answers")}
            record |= {"images": [_identity(image) for image in sample.images], "metadata": dict(sample.metadata)}
            if sample.objects:  # their number, because masks of a sample that cannot be played are missing ones
                record["objects"] = [len(masks) for masks in gold_masks(sample.objects).values()]
            file.write(json.dumps(record, default=str) + "\n")
            yield sample


def read_outcomes(directory: Path) -> list[SampleOutcome]:
    """Reads the outcomes of a folder, in the order of its samples.

    Raises:
      DataError: If the folder has no samples or two with one id, or if a file is damaged.
    """
    path = directory / SAMPLES
    try:
        listed = list(read_json_lines(path, _unplayed))
    except FileNotFoundError:
        raise DataError(f"{path}: file does not exist; play the samples first with --phase=predict") from None
    outcomes = {outcome.sample_id: outcome for outcome in listed}
    if len(outcomes) < len(listed):
        ((twice, _),) = Counter(outcome.sample_id for outcome in listed).most_common(1)
        raise DataError(f"{path}: sample {twice!r} occurs twice; play the samples again under ids of their own")
    for trajectory in played(directory):
        if trajectory.sample_id in outcomes:
            outcomes[trajectory.sample_id] = _played_out(outcomes[trajectory.sample_id], trajectory)
    return list(outcomes.values())


def clusters(outcomes: Sequence[SampleOutcome]) -> tuple[str, list[str]]:
    """Returns the kind of clusters and the cluster of each outcome: its patient if all outcomes have one, else its images."""
    return choose_clusters([cluster_keys(o.sample_id, o.images, o.metadata) for o in outcomes])


def cluster_keys(sample_id: str, images: Sequence[str], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Returns the clusters that a sample may belong to, by kind: its patient, under each key that it has, and its images."""
    patient = {key: str(metadata[key]) for key in PATIENT if key in metadata}
    return patient | {"image": " ".join(split_frame(image)[0] for image in images) or sample_id}


def choose_clusters(keys: Sequence[Mapping[str, str]]) -> tuple[str, list[str]]:
    """Returns the first kind of clusters that all samples have, and the cluster of each sample."""
    kind = next(kind for kind in (*PATIENT, "image") if all(kind in each for each in keys))
    return kind, [each[kind] for each in keys]


def _identity(image: Any) -> str:
    return image_name(image) if isinstance(image, str) else pixels_sha256(image)


def _unplayed(record: Mapping[str, Any]) -> SampleOutcome:
    options = tuple((letter, text) for letter, text in record["options"])
    answers = tuple(record.get("answers", ()))  # absent in older files
    kept = dict(record)
    counts = kept.pop("objects", None)
    masks = MatchedObjects(*(MatchedMasks((0.0,) * count) for count in counts)) if counts else None
    kept |= {"options": options, "images": tuple(record["images"]), "answers": answers, "masks": masks}
    return SampleOutcome(**kept)


class _Unopened:
    """Placeholder for an image's pixels; opens the file only to read its size."""

    def __init__(self, path: Path):
        self._path = path

    @cached_property
    def size(self) -> tuple[int, int]:
        with Image.open(self._path) as file:
            return file.size

    width = property(lambda self: self.size[0])
    height = property(lambda self: self.size[1])


def played(directory: Path) -> Iterator[Trajectory]:
    """Yields each trajectory of a folder, without opening its images."""
    for record in read_records(directory):
        yield Trajectory.from_json(record, directory / "images", lambda path: cast(Image.Image, _Unopened(path)))


def read_references(directory: Path) -> dict[str, float]:
    """Returns the log-probabilities of reference answers in a folder, by sample; see `evaluation/reference.py`."""
    stem, suffix = REFERENCES.split(".")
    found: dict[str, float] = {}
    for path in sorted(directory.glob(f"{stem}*.{suffix}")):
        found.update(read_json_lines(path, lambda line: (line["sample_id"], float(line["logprob"]))))
    return found


def _played_out(outcome: SampleOutcome, trajectory: Trajectory) -> SampleOutcome:
    status: Status = "answered" if trajectory.predicted_answer else "truncated" if trajectory.cut_off else "unanswered"
    return dataclasses.replace(
        outcome,
        status=status,
        prediction=trajectory.predicted_answer or "",
        probability=answer_probability(trajectory),
        tokens=sum(trajectory.loss_mask),
        images_seen=len(trajectory.images),
        masks=match_objects(trajectory),
    )
