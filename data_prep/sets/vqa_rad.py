"""VQA-RAD (Lau et al., 2018): clinicians' questions about radiology images, read from the published files.

A folder holds `VQA_RAD Dataset Public.json` and the images, in `VQA_RAD Image Folder` (as published, https://osf.io/89kps)
or in `images`.

The 451 test questions have phrase type `test_freeform` or `test_para`. The 1,793 training questions are all others, without
duplicates and without the one that is also in the test set. The copy on Hugging Face has the same rows. The split is by
question: 202 of the 203 test images also occur in training.

The data set has no boxes, so the boxes of its two-turn demonstrations are templates, and are labelled as synthetic.

Recipes read the published files with `data_prep.sets.vqa_rad:source`. `python -m data_prep.build vqa_rad` also reads the copy
on the hub, which lacks the kinds of the questions.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, SupportsIndex, get_args

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import ImageFile, Published
from data_prep.sets.path_vqa import rows_by_split
from vitar_jax.data.paths import find_file, nfc
from vitar_jax.data.tables import Row, json_rows
from vitar_jax.episodes.answers import exact_match, normalise_answer
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer, Demonstration, Look, Sample
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.user_errors import one_line_errors

Split = Literal["train", "test"]
Demonstrations = Literal["none", "direct", "two_rounds"]
ToolName = Literal["mark", "zoom"]

QUESTIONS = "VQA_RAD Dataset Public.json"
IMAGE_FOLDERS = ("VQA_RAD Image Folder", "images")
CENTRE_SHARE = 0.6  # share of each side that the central box spans

_NEEDED = ("qid", "image_name", "question", "answer", "phrase_type", "answer_type", "question_type", "image_organ")
_METADATA = ("image_name", "phrase_type", "answer_type", "question_type", "image_organ")


@dataclass(frozen=True)
class VQARad:
    """Random access to the samples of a split. Item i depends only on the arguments and i.

    Attributes:
      demonstrations: "none"; "direct", a thought and the answer, for single-turn protocols; or "two_rounds", a turn with `tool`
        and a turn that answers. The box is the whole image (even question number) or its centre (odd).
      tool: Tool of the two-turn demonstrations.
    """

    samples: tuple[Sample, ...] = field(repr=False)
    split: Split
    demonstrations: Demonstrations = "none"
    tool: ToolName = "zoom"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Returns a sample, with its demonstration if any.

        Raises:
          ImageError: If the image, whose size a two-turn demonstration needs, cannot be read.
        """
        sample = self.samples[index]
        if self.demonstrations == "direct":
            return replace(sample, demonstration=Demonstration((), Answer("I look, then I answer.", sample.answer)))
        if self.demonstrations == "two_rounds":
            return _two_rounds(sample, self.tool)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def source(split: Split, *, directory: str, demonstrations: Demonstrations = "none", tool: ToolName = "zoom") -> VQARad:
    """Opens a split; `VQARad` describes the arguments.

    Raises:
      ConfigError: If `directory` is empty.
      DataError: See `read_folder`.
      ValueError: If an argument has an invalid value.
    """
    for value, kind in ((split, Split), (demonstrations, Demonstrations), (tool, ToolName)):
        if value not in get_args(kind):
            raise ValueError(f"got {value!r}, expected one of {', '.join(get_args(kind))}")
    if not directory:
        raise ConfigError(f"vqa_rad: directory must be set to the folder that holds {QUESTIONS!r} and the images")
    return VQARad(read_folder(directory, split), split, demonstrations, tool)


def read_folder(directory: str | Path, split: Split) -> tuple[Sample, ...]:
    """Returns the samples of a split, without demonstrations, in the order of the file. Images are paths.

    Raises:
      DataError: If the folder, the questions or an image are missing, or a record is malformed.
    """
    return _of_split(_read(Path(directory)), split)


def _read(directory: Path, wrong: list[DataError] | None = None) -> list[Sample]:
    """Returns all samples. Adds the errors of single records to `wrong`; if it is None, raises the first one."""
    images = _image_folder(directory)
    available = {nfc(path.name) for path in images.iterdir()}
    path = directory / QUESTIONS
    found: dict[str, Sample] = {}
    for row in json_rows(path, wrong):
        try:
            sample = _sample(row, images)
            if sample.sample_id in found:
                raise DataError(f"{path}: {sample.sample_id} occurs twice")
            if nfc(sample.metadata["image_name"]) not in available:
                raise DataError(f"{path}, {sample.sample_id}: no such image: {sample.images[0]}")
        except DataError as error:
            if wrong is None:
                raise
            wrong.append(error)
        else:
            found[sample.sample_id] = sample
    return list(found.values())


def _of_split(everything: Sequence[Sample], split: Split) -> tuple[Sample, ...]:
    test = [sample for sample in everything if sample.metadata["phrase_type"].startswith("test_")]
    if split == "test":
        return tuple(test)
    kept: dict[tuple[str, ...], Sample] = {}
    for sample in everything:
        kept.setdefault(_content(sample), sample)  # keeps the first of duplicates
    for sample in test:
        kept.pop(_content(sample), None)
    return tuple(kept.values())


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records of the published folder, or of the Parquet files of the hub, by split."""
    if published.has("data/*.parquet"):
        return rows_by_split(published, "vqa-rad", get_args(Split))
    published.file(QUESTIONS)
    everything = _read(published.folder, published.bad)
    return {split: _records(_of_split(everything, split)) for split in get_args(Split)}


def _records(samples: Iterable[Sample]) -> Iterator[Record]:
    for sample in samples:
        (path,) = map(Path, map(str, sample.images))
        image = ImageFile(path.name, path.read_bytes)
        yield Record(replace(sample, images=()), (image,), f"{QUESTIONS}, {sample.sample_id}")


def majority_answer_baseline(train: Iterable[Sample], test: Iterable[Sample]) -> float:
    """Returns the accuracy on `test` of always giving the most frequent answer of `train` (`exact_match`).

    Pass only closed or only open questions (`metadata["answer_type"]`) for the baseline of that kind.
    """
    answers = Counter(normalise_answer(sample.answer) for sample in train)
    ((guess, _),) = answers.most_common(1)
    right = [exact_match(guess, sample.answer) for sample in test]
    return sum(right) / len(right)


def _image_folder(directory: Path) -> Path:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder")
    for name in IMAGE_FOLDERS:
        if (directory / name).is_dir():
            return directory / name
    raise DataError(f"{directory}: contains no image folder named {' or '.join(map(repr, IMAGE_FOLDERS))}")


def _sample(row: Row, images: Path) -> Sample:
    text = {key: row.text(key) for key in _NEEDED}  # five answers and most ids are numbers
    if not text["qid"].isdecimal():
        raise row.wrong("qid", "a whole number")
    return Sample(
        sample_id=f"vqa-rad-{text['qid']}",
        question=text["question"],
        images=(str(find_file(images, text["image_name"])),),
        answer=text["answer"],
        metadata={key: text[key] for key in _METADATA},
    )


def _content(sample: Sample) -> tuple[str, ...]:
    return sample.metadata["image_name"], sample.question, sample.answer


def _two_rounds(sample: Sample, tool: ToolName) -> Sample:
    width, height = _image_size(str(sample.images[0]))
    number = int(sample.sample_id.rpartition("-")[2])
    share, thought = ((1.0, "I look at all of it."), (CENTRE_SHARE, "I look at the middle."))[number % 2]
    left, top = width * (1 - share) / 2, height * (1 - share) / 2
    box = Box(left, top, width - left, height - top, "original")
    return replace(
        sample,
        demonstration=Demonstration((Look(thought, tool, (box,)),), Answer("I looked again.", sample.answer)),
        metadata={**sample.metadata, "synthetic_box": True},
    )


@lru_cache(maxsize=4096)
def _image_size(path: str) -> tuple[int, int]:
    """Returns (width, height) of the image as an episode sees it, with its orientation applied."""
    return open_image(path).size


@one_line_errors(paths=True)
def main() -> None:
    """Counts the questions of a copy of VQA-RAD and prints the accuracy of the most frequent answer."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.sets.vqa_rad", description=main.__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="folder of the data set")
    directory = parser.parse_args().directory
    train, test = read_folder(directory, "train"), read_folder(directory, "test")
    if not train or not test:
        counts = f"{len(train)} training and {len(test)} test questions"
        raise DataError(f"{directory / QUESTIONS}: holds {counts}, expected some of both")
    print(f"{len(train)} training and {len(test)} test questions")
    print(f"the most frequent training answer is correct for {majority_answer_baseline(train, test):.1%} of the test questions")


SET = DataSet(
    name="vqa_rad",
    title="VQA-RAD: clinicians' questions about radiology images",
    url="https://osf.io/89kps",
    licence="CC0-1.0",
    citation="Lau et al., A dataset of clinically generated visual questions and answers about radiology images, 2018",
    layout=f"'{QUESTIONS}', and the images in '{IMAGE_FOLDERS[0]}' or '{IMAGE_FOLDERS[1]}';\n"
    "or data/*.parquet of flaviagiammarino/vqa-rad, which lacks the kinds of the questions",
    counts={"train": 1793, "test": 451},
    notes=(
        "Of 2,248 questions, test has the 451 of phrase type test_freeform or test_para; train has the rest, deduplicated.",
        "By answer_type, 272 test questions are closed; 251 of them have the answer yes or no.",
        "Some images show the name of their uploader in the margin.",
    ),
)


if __name__ == "__main__":
    main()
