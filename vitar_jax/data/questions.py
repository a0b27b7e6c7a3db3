"""Question files of users: CSV or JSON Lines, with a folder of images.

    id,image,question,options,answer           {"image": "a.png", "question": "Is the heart enlarged?"}
    1,a.png,Which texture?,flat|rows,B         {"images": ["b.dcm", "c.dcm"], "question": "Which grew?", "options": ["b", "c"]}

Only `question` is required. `image` is one path and `images` are several. `options` and `images` are lists, or text separated
by |. Options get the letters A, B, ... With options, `answer` (if known) is a letter. A question without an `id` is identified
by a hash of its text, its images and its options. All other columns go to the sample's metadata.

Files may also give the `boxes` that show the answer (in CSV as JSON), and JSONL an expert's `demonstration`. Boxes are in
pixels of the image as stored; those that show the answer lie on the first image. Another unit must be declared:
`boxes="normalized"` for shares of the sides from 0 to 1, `boxes="1000"` for thousandths. Undeclared boxes that look like shares
are an error.

    {..., "boxes": [[12, 30, 64, 80]],
     "demonstration": {"looks": [{"thought": "I mark it.", "tool": "mark", "regions": [[12, 30, 64, 80]]}],
                       "answer": {"thought": "It is flat."}}}

A demonstration has any number of looks. A look may also give the index of its `image`, and further `arguments` of its tool. The
older form {"thoughts": [...], "tool": ..., "boxes": [...]}, which has one look, is read too.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitar_jax.data.tables import csv_rows, jsonl_rows, text
from vitar_jax.episodes.regions import UNITS, Box, Mask, Region, Unit, declared, inside
from vitar_jax.episodes.sample import Demonstration, Sample, letters
from vitar_jax.errors import ConfigError, DataError, ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.crash_safe import atomic_replace

_OPTION = re.compile(r"(?:^|\s)([A-Z])\)\s*")  # "... A) Glioma B) Meningioma"
COLUMNS = ("id", "question", "image", "images", "options", "answer", "boxes", "demonstration")


def source(split: str, *, file: str, images: str = "", boxes: Unit = "") -> tuple[Sample, ...]:
    """Reads a question file for a recipe. Ignores the split; see `read`."""
    return read(file, images, boxes)


def read(file: str | Path, images: str | Path = "", boxes: Unit = "") -> tuple[Sample, ...]:
    """Reads the questions of a file, in its order.

    Args:
      file: A .csv or .jsonl file.
      images: Folder that relative image paths start from. If empty, the folder of the file.
      boxes: Unit of the boxes: "pixels", "normalized" or "1000". If empty, pixels; see `regions.declared`.

    Raises:
      ConfigError: If the unit is unknown.
      DataError: If the file cannot be read, or if a row is malformed or a duplicate. The message names file, line and column.
    """
    file = Path(file)
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"{file}: not a file of questions; expected .csv or .jsonl")
    if boxes not in ("", *UNITS):
        raise ConfigError(f"boxes: got {boxes!r}, expected one of {', '.join(UNITS)}")
    folder = Path(images or file.parent)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    samples: dict[str, Sample] = {}
    for row in csv_rows(file, needed=("question",)) if file.suffix.lower() == ".csv" else jsonl_rows(file):
        sample = _sample(row.values, row.where, folder, boxes)
        if sample.sample_id in samples:
            what = "id" if "id" in row.values else "question without an id"
            raise DataError(f"{row.where}: {what} {sample.sample_id!r} occurs twice")
        samples[sample.sample_id] = sample
    if not samples:
        raise DataError(f"{file}: holds no questions")
    return tuple(samples.values())


def write(file: Path, samples: Iterable[Sample]) -> None:
    """Writes samples as JSONL, which `read` reads back. Their images must be files below the folder of `file`."""
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
    """Splits a question from the options written after it, which start with "A) " and continue in alphabetical order.

    Returns:
      The question and its options; the whole text and no options if fewer than two are found.
    """
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


def _sample(row: Mapping[str, Any], where: str, folder: Path, unit: Unit) -> Sample:
    if "question" not in row:
        raise DataError(f"{where}: question is missing")
    if "image" in row and "images" in row:
        raise DataError(f"{where}: got both image and images, expected at most one of them")
    question = text(row["question"], f"{where}: question")
    images = [text(row["image"], f"{where}: image")] if "image" in row else _list(row.get("images", []), f"{where}: images")
    options = _list(row.get("options", []), f"{where}: options")
    answer = text(row["answer"], f"{where}: answer") if "answer" in row else ""
    content = json.dumps([question, images, options])
    paths = tuple(str(folder / image) for image in images)
    return Sample(
        sample_id=text(row["id"], f"{where}: id") if "id" in row else hashlib.sha256(content.encode()).hexdigest()[:16],
        question=question,
        images=paths,
        answer=answer,
        options=letters(options, f"{where}: options"),
        boxes=_boxes(row.get("boxes", []), paths, unit, f"{where}: boxes"),
        demonstration=_demonstration(row["demonstration"], answer, unit, where) if "demonstration" in row else None,
        metadata={key: value for key, value in row.items() if key not in COLUMNS},
    )


def _list(value: Any, where: str) -> list[str]:
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise DataError(f"{where}: got {value!r}, expected a list, or text separated by |")
    return [text(part, where) for part in parts]


def _boxes(value: Any, images: Sequence[str], unit: Unit, where: str) -> tuple[Box, ...]:
    try:
        listed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(listed, list):
            raise TypeError(f"got {type(listed).__name__}")
        boxes = [Box(*map(float, box), frame="original") for box in listed]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: got {value!r}, expected boxes [left, upper, right, lower] ({error})") from error
    try:
        made = tuple(declared(box, unit) for box in boxes)
        if all(box.frame == "original" for box in made):
            return made
        size = open_image(images[0]).size if images else (0, 0)
        return tuple(inside(box, size) for box in made)
    except (ImageError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


def _demonstration(value: Any, answer: str, unit: Unit, where: str) -> Demonstration:
    def in_unit(region: Region) -> Region:
        return region if isinstance(region, Mask) else declared(region, unit)

    try:
        shown = Demonstration.from_json(value, answer)
        looks = tuple(replace(look, regions=tuple(map(in_unit, look.regions))) for look in shown.looks)
        return replace(shown, looks=looks)
    except ValueError as error:
        raise DataError(f"{where}: demonstration: {error}") from error
