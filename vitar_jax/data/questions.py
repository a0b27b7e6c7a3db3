"""Question files of users: CSV or JSON Lines, with a folder of images.

    id,image,question,options,answer           {"image": "a.png", "question": "Is the heart enlarged?"}
    1,a.png,Which texture?,flat|rows,B         {"images": ["b.dcm", "c.dcm"], "question": "Which grew?", "options": ["b", "c"]}

Only `question` is required. `image` is one path and `images` are several. A path may choose a frame (`scan.dcm#frame=12`), and
a data URI or base64 text may stand in its place. `options` and `images` are lists, or text separated by |, or text in which
JSON, pandas or NumPy writes a list. Options get the letters A, B, ...; they may also be an object by letter. With options,
`answer` (if known) is a letter, or what `options.Options.letter` reads as one: an option's text, "(B)" or "B.". `answers` are
several correct answers, any of which counts. A question without an `id` is identified by a hash of its text, its images and
its options. All other columns go to the sample's metadata.

Files may also give the `boxes` that show the answer (in CSV as JSON), `other_boxes` of other findings on the same image, which
go to the metadata, and JSONL an expert's `demonstration`. Boxes are in
pixels of the image as stored; those that show the answer lie on the first image. Another unit must be declared:
`boxes="normalized"` for shares of the sides from 0 to 1, `boxes="1000"` for thousandths. Undeclared boxes that look like shares
are an error, and so are those that look like thousandths: if all of a file end within 1000, but many of its images are larger.

    {..., "boxes": [[12, 30, 64, 80]],
     "demonstration": {"looks": [{"thought": "I mark it.", "tool": "mark", "regions": [[12, 30, 64, 80]]}],
                       "answer": {"thought": "It is flat."}}}

`objects` are those that the reasoning and the answer should show, each with its mask on the first image as run lengths of COCO.
A demonstration mentions each of them by its name, and no other one.

    {..., "objects": [{"name": "obj1", "mask": {"size": [480, 640], "counts": "..."}, "in_reasoning": true, "in_answer": true}],
     "demonstration": {"looks": [], "answer": {"thought": "A cyst (<ver><obj1></ver>).", "text": "It (<vea><obj1></vea>)."}}}

A demonstration has any number of looks. A look may also give the index of its `image`, and further `arguments` of its tool. The
older form {"thoughts": [...], "tool": ..., "boxes": [...]}, which has one look, is read too.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitar_jax.data.options import Options
from vitar_jax.data.paths import find_file
from vitar_jax.data.tables import Row, as_list, csv_rows, jsonl_rows, text
from vitar_jax.episodes import regions
from vitar_jax.episodes.object_tags import mentions
from vitar_jax.episodes.regions import UNITS, Box, Mask, Region, Size, Unit, declared, inside, region_to_json
from vitar_jax.episodes.sample import Demonstration, Sample, SegmentedObject
from vitar_jax.errors import ConfigError, DataError, ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.processing.sources import is_inline
from vitar_jax.runtime.crash_safe import atomic_replace

OTHER_BOXES = "other_boxes"
COLUMNS = ("id", "question", "image", "images", "options", "answer", "answers", "boxes", "demonstration", "objects")


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
    wrong: list[DataError] = []
    samples = tuple(sample for _, sample in read_rows(file, images, boxes, wrong))
    if wrong:
        more = f" (and {len(wrong) - 1} more invalid records)" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}") from wrong[0]
    if not samples:
        raise DataError(f"{file}: holds no questions")
    if not boxes:
        refuse_thousandths(samples, file)
    return samples


def _size(image: str) -> Size:
    return open_image(image).size


def refuse_thousandths(
    samples: Sequence[Sample], file: str | Path, size_of: Callable[[str], Size] = _size, most: int = 16
) -> None:
    """Refuses the undeclared boxes of a file if they are probably in thousandths; see `regions.refuse_thousandths`.

    Args:
      size_of: See `read_rows`. Images whose sizes cannot be read are ignored.
      most: Maximum number of images to open, spread over the file. None is opened if a box ends beyond 1000.

    Raises:
      DataError: If the boxes are probably in thousandths.
    """
    edges: dict[str, float] = {}  # by image
    for sample in samples:
        for image, box in _pixel_boxes(sample):
            edges[image] = max(edges.get(image, 0.0), box.x2, box.y2)
    if not edges or max(edges.values()) > 1000:
        return
    sizes = []
    for image in list(edges)[:: -(-len(edges) // most)]:
        with contextlib.suppress(ImageError):
            sizes.append(size_of(image))
    try:
        regions.refuse_thousandths(sizes, max(edges.values()))
    except ValueError as error:
        raise DataError(f"{file}: boxes: {error}") from error


def _pixel_boxes(sample: Sample) -> Iterator[tuple[str, Box]]:
    """Yields each box in pixels of one of the sample's images, with that image."""
    looks = sample.demonstration.looks if sample.demonstration else ()
    others = [Box(*box, frame="original") for box in sample.metadata.get(OTHER_BOXES, [])]
    placed = [(0, (*sample.boxes, *others)), *((look.image, look.regions) for look in looks)]
    for index, boxes in placed:
        for box in boxes if index < len(sample.images) else ():
            if isinstance(box, Box) and box.frame == "original":
                yield str(sample.images[index]), box


def read_rows(
    file: str | Path,
    images: str | Path = "",
    boxes: Unit = "",
    wrong: list[DataError] | None = None,
    size_of: Callable[[str], Size] = _size,
) -> Iterator[tuple[str, Sample]]:
    """Yields the location and the sample of each row of a file. `read` describes the arguments and errors.

    Args:
      size_of: Returns (width, height) of an image, which boxes in another unit than pixels need. Raises ImageError.
      wrong: Collects the errors of single rows, which are then left out. If None, the first one is raised.
    """
    file = Path(file)
    if file.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"{file}: not a file of questions; expected .csv or .jsonl")
    if boxes not in ("", *UNITS):
        raise ConfigError(f"boxes: got {boxes!r}, expected one of {', '.join(UNITS)}")
    folder = Path(images or file.parent)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    seen: dict[str, str] = {}
    is_csv = file.suffix.lower() == ".csv"
    for row in csv_rows(file, needed=("question",), wrong=wrong) if is_csv else jsonl_rows(file, wrong):
        try:
            sample = _sample(row, folder, boxes, size_of)
            if first := seen.get(sample.sample_id):
                what = "id" if "id" in row.values else "question without an id"
                raise DataError(f"{row.where}: {what} {sample.sample_id!r} occurs twice, first at {first}")
        except DataError as error:
            if wrong is None:
                raise
            wrong.append(error)
            continue
        seen[sample.sample_id] = row.where
        yield row.where, sample


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
            if sample.answers:
                row["answers"] = sample.answers
            if sample.objects:
                row["objects"] = [one.to_json() for one in sample.objects]
            if sample.demonstration:
                row["demonstration"] = sample.demonstration.to_json()
            opened.write(json.dumps(row | dict(sample.metadata), ensure_ascii=False) + "\n")


def _sample(row: Row, folder: Path, unit: Unit, size_of: Callable[[str], Size]) -> Sample:
    question = row.text("question")
    images = _images(row)
    metadata = {key: value for key, value in row.values.items() if key not in COLUMNS}
    options = Options.of(row.values.get("options", []), f"{row.where}: options")
    answer, answers = _answers(row, options)
    content = json.dumps([question, images, [option for _, option in options.pairs]])
    paths = tuple(image if is_inline(image) else str(find_file(folder, image)) for image in images)
    boxes, others = (
        _boxes(row.values.get(key, []), paths, unit, size_of, f"{row.where}: {key}") for key in ("boxes", OTHER_BOXES)
    )
    shown = _demonstration(row, answer, options, unit) if "demonstration" in row.values else None
    if OTHER_BOXES in metadata:
        metadata[OTHER_BOXES] = [list(box.xyxy) for box in others]
    return Sample(
        sample_id=row.text("id") if "id" in row.values else hashlib.sha256(content.encode()).hexdigest()[:16],
        question=question,
        images=paths,
        answer=answer,
        options=options.pairs,
        boxes=boxes,
        demonstration=shown,
        metadata=metadata,
        answers=answers,
        objects=_objects(row, shown) if "objects" in row.values else (),
    )


def _images(row: Row) -> list[str]:
    if "image" in row.values and "images" in row.values:
        raise DataError(f"{row.where}: got both image and images, expected at most one of them")
    if "image" not in row.values:
        return _texts(row, "images")
    listed = as_list(row.values["image"], f"{row.where}: image")
    return [row.text("image")] if listed is None else [text(image, f"{row.where}: image") for image in listed]


def _texts(row: Row, key: str) -> list[str]:
    """Returns a list of texts, which may be written as text. Returns an empty list if the value is missing."""
    value, where = row.values.get(key, []), f"{row.where}: {key}"
    listed = as_list(value, where)
    if listed is None:
        if not isinstance(value, str):
            raise DataError(f"{where}: got {value!r}, expected a list, or text separated by |")
        listed = value.split("|")
    return [text(one, where) for one in listed]


def _answers(row: Row, options: Options) -> tuple[str, tuple[str, ...]]:
    """Returns the reference answer, and all correct answers if there are several."""
    gold, where = row.values.get("answer", ""), f"{row.where}: answer"
    golds: list[Any] = _texts(row, "answers")
    listed = as_list(gold, where)
    # Numbers in brackets may be an answer, such as an interval; texts in brackets are a list.
    if listed and (not isinstance(gold, str) or all(isinstance(one, str) for one in listed)):
        gold, golds = "", golds + listed
    answers = tuple(dict.fromkeys(options.letter(one, where) for one in golds))
    answer = options.letter(gold, where) if "answer" in row.values and gold != "" else next(iter(answers), "")
    if answers and answer not in answers:
        raise DataError(f"{where}: got {answer!r}, which is not one of the answers {', '.join(answers)}")
    return answer, options.equal_to(*(answers or [answer]))


def _boxes(
    value: Any, images: Sequence[str], unit: Unit, size_of: Callable[[str], Size], where: str
) -> tuple[Box, ...]:
    try:
        listed = as_list(value, where)
        if listed is None:
            raise TypeError(f"got {type(value).__name__}")
        boxes = [Box(*map(float, box), frame="original") for box in listed]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: got {value!r}, expected boxes [left, upper, right, lower] ({error})") from error
    try:
        made = tuple(declared(box, unit) for box in boxes)
        if all(box.frame == "original" for box in made):
            return made
        size = size_of(images[0]) if images else (0, 0)
        return tuple(inside(box, size) for box in made)
    except (ImageError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error


def _demonstration(row: Row, answer: str, options: Options, unit: Unit) -> Demonstration:
    def in_unit(region: Region) -> Region:
        return region if isinstance(region, Mask) else declared(region, unit)

    try:
        shown = Demonstration.from_json(row.values["demonstration"], answer)
        looks = tuple(replace(look, regions=tuple(map(in_unit, look.regions))) for look in shown.looks)
    except ValueError as error:
        raise DataError(f"{row.where}: demonstration: {error}") from error
    last = shown.answer
    if last.text and options.pairs:
        last = replace(last, text=options.letter(last.text, f"{row.where}: demonstration: answer"))
    return replace(shown, looks=looks, answer=last)


def _objects(row: Row, shown: Demonstration | None) -> tuple[SegmentedObject, ...]:
    """Returns the objects of a row, whose masks are checked against each other and the demonstration, not against the image."""
    objects: dict[str, SegmentedObject] = {}
    for number, value in enumerate(row.list("objects")):
        where = f"{row.where}: objects: object {number}"
        try:
            mask = value.get("mask") if isinstance(value, dict) else None
            if isinstance(mask, dict) and "size" in mask:
                value = {**value, "mask": region_to_json(Mask.from_coco(mask))}
            one = SegmentedObject.from_json(value)
            if one.name in objects:
                raise ValueError(f"got a second object named {one.name!r}")
            if one.mask.frame != "original":
                raise ValueError(f"got a mask in frame {one.mask.frame!r}, expected pixels of the image")
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        objects[one.name] = one
    if len(sizes := {one.mask.shape for one in objects.values()}) > 1:
        several = ", ".join(map(str, sorted(sizes)))
        raise DataError(f"{row.where}: objects: got masks of the sizes {several}, expected that of the image")
    if shown:
        said = {*mentions(shown.answer.thought), *mentions(shown.answer.text)}
        for name in sorted(said ^ objects.keys()):
            lacks = "is mentioned, but has no mask" if name in said else "has a mask, but is not mentioned"
            raise DataError(f"{row.where}: demonstration: <{name}> {lacks}")
    return tuple(objects.values())
