"""Questions of one's own: a CSV or JSONL file, and a folder of images.

    id,image,question,options,answer           {"image": "a.png", "question": "Is the heart enlarged?"}
    1,a.png,Which texture?,flat|rows,B         {"images": ["b.dcm", "c.dcm"], "question": "Which grew?", "options": ["b", "c"]}

Only `question` is needed. `image` is one path, `images` are several; `options` and `images` are lists, or text with | between.
Options get the letters A, B, ...; an `answer`, where one is known, is a letter if there are options. Without an `id` a
question is called by a hash of itself, its images and its options. Other columns are kept in the sample's metadata.

JSONL may also say where the answer is to be seen, and how an expert looks; boxes are pixels of the first image as it came:

    {..., "boxes": [[12, 30, 64, 80]],
     "demonstration": {"looks": [{"thought": "I mark it.", "tool": "mark", "regions": [[12, 30, 64, 80]]}],
                       "answer": {"thought": "It is flat."}}}

There may be any number of looks. A look may name another `image` by index, and further `arguments` of its tool. A demonstration
may also have the older form {"thoughts": [...], "tool": ..., "boxes": [...]}, which is one look.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitar_jax.data.tables import csv_rows, jsonl_rows, text
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Demonstration, Sample, letters
from vitar_jax.errors import DataError
from vitar_jax.runtime.crash_safe import atomic_replace

_OPTION = re.compile(r"(?:^|\s)([A-Z])\)\s*")  # "... A) Glioma B) Meningioma"
COLUMNS = ("id", "question", "image", "images", "options", "answer", "boxes", "demonstration")


def source(split: str, *, file: str, images: str = "") -> tuple[Sample, ...]:
    """The file as recipes name it, whatever the split; see `read`."""
    return read(file, images)


def read(file: str | Path, images: str | Path = "") -> tuple[Sample, ...]:
    """The questions of a file, in its order.

    Args:
      images: folder that relative image paths start from; empty: the file's own.

    Raises:
      DataError: the file cannot be read, or a row is malformed or there twice; file, line and column are named.
    """
    file = Path(file)
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"{file}: questions come as .csv or .jsonl")
    folder = Path(images or file.parent)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images")
    samples: dict[str, Sample] = {}
    for row in csv_rows(file, needed=("question",)) if file.suffix.lower() == ".csv" else jsonl_rows(file):
        sample = _sample(row.values, row.where, folder)
        if sample.sample_id in samples:
            what = "id" if "id" in row.values else "question without an id"
            raise DataError(f"{row.where}: {what} {sample.sample_id!r} is there twice")
        samples[sample.sample_id] = sample
    if not samples:
        raise DataError(f"{file}: holds no questions")
    return tuple(samples.values())


def write(file: Path, samples: Iterable[Sample]) -> None:
    """Writes samples whose images are files below the file's folder, as JSONL that `read` gives back."""
    with atomic_replace(file) as partial, partial.open("w", encoding="utf-8") as opened:
        for sample in samples:
            row: dict[str, Any] = {
                "id": sample.sample_id,
                "images": [Path(str(image)).relative_to(file.parent).as_posix() for image in sample.images],
                "question": sample.question,
                "options": [text for _, text in sample.options],
                "answer": sample.answer,
                "boxes": [box.xyxy for box in sample.boxes],
            }
            if sample.demonstration:
                row["demonstration"] = sample.demonstration.to_json()
            opened.write(json.dumps(row | dict(sample.metadata), ensure_ascii=False) + "\n")


def split_options(question: str) -> tuple[str, list[str]]:
    """A question and the options written behind it, which begin with "A) " and go on in alphabetical order."""
    found = list(_OPTION.finditer(question))
    starts = [match for match in found if match[1] == "A"]
    if not starts:
        return question, []
    run = [starts[-1]]
    for match in found[found.index(starts[-1]) + 1 :]:
        if ord(match[1]) == ord(run[-1][1]) + 1:
            run.append(match)
    ends = [match.start() for match in run[1:]] + [len(question)]
    options = [question[match.end() : end].strip() for match, end in zip(run, ends, strict=True)]
    return (question[: run[0].start()].strip(), options) if len(options) > 1 else (question, [])


def _sample(row: Mapping[str, Any], where: str, folder: Path) -> Sample:
    if "question" not in row:
        raise DataError(f"{where}: question is missing")
    if "image" in row and "images" in row:
        raise DataError(f"{where}: has image and images; it may have one of them")
    question = text(row["question"], f"{where}: question")
    images = [text(row["image"], f"{where}: image")] if "image" in row else _list(row.get("images", []), f"{where}: images")
    options = _list(row.get("options", []), f"{where}: options")
    answer = text(row["answer"], f"{where}: answer") if "answer" in row else ""
    content = json.dumps([question, images, options])
    return Sample(
        sample_id=text(row["id"], f"{where}: id") if "id" in row else hashlib.sha256(content.encode()).hexdigest()[:16],
        question=question,
        images=tuple(str(folder / image) for image in images),
        answer=answer,
        options=letters(options, f"{where}: options"),
        boxes=_boxes(row.get("boxes", []), f"{where}: boxes"),
        demonstration=_demonstration(row["demonstration"], answer, where) if "demonstration" in row else None,
        metadata={key: value for key, value in row.items() if key not in COLUMNS},
    )


def _list(value: Any, where: str) -> list[str]:
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise DataError(f"{where} is {value!r}, it must be a list, or text with | between")
    return [text(part, where) for part in parts]


def _boxes(value: Any, where: str) -> tuple[Box, ...]:
    if not isinstance(value, list):
        raise DataError(f"{where} is {value!r}, it must be a list of [left, upper, right, lower]")
    try:
        return tuple(Box(*map(float, box), frame="original") for box in value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: {value!r} are not boxes [left, upper, right, lower] ({error})") from error


def _demonstration(value: Any, answer: str, where: str) -> Demonstration:
    try:
        return Demonstration.from_json(value, answer)
    except ValueError as error:
        raise DataError(f"{where}: demonstration: {error}") from error
