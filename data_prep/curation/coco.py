"""COCO JSON: `images`, `categories`, and `annotations` with a `bbox` of left, top, width and height in pixels."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.curation.detections import Annotated, Found, annotated
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import DataError


def read(annotations: Path, images: Path) -> Iterator[Annotated | DataError]:
    """Yields the images of a COCO file, or a DataError for each malformed record.

    Raises:
      DataError: If the file cannot be read, a category is malformed, or an id occurs twice.
    """
    lists = _load(annotations)
    names: dict[Any, str] = {}
    for number, category in enumerate(lists["categories"]):
        where = f"{annotations}, category {number}"
        if not isinstance(name := _get(category, "name", where), str) or not name.strip():
            raise DataError(f"{where}: name: got {name!r}, expected text")
        names[_new(_get(category, "id", where), names, where)] = name.strip()

    known: dict[Any, int] = {}
    for number, image in enumerate(lists["images"]):
        where = f"{annotations}, image {number}"
        known[_new(_get(image, "id", where), known, where)] = number
    objects: dict[int, list[Found]] = defaultdict(list)
    for number, annotation in enumerate(lists["annotations"]):
        where = f"{annotations}, annotation {number}"
        try:
            image = known[_id(_get(annotation, "image_id", where), known, where)]
        except DataError as error:
            yield error
            continue
        try:
            name = names[_id(_get(annotation, "category_id", where), names, where)]
            objects[image].append((name, _box(_get(annotation, "bbox", where), where)))
        except DataError as error:
            objects[image].append(error)

    for number, image in enumerate(lists["images"]):
        where = f"{annotations}, image {number}"
        try:
            name, size = _get(image, "file_name", where), (_get(image, "width", where), _get(image, "height", where))
            if not isinstance(name, str) or not all(isinstance(side, int) for side in size):
                raise DataError(f"{where}: got file_name {name!r} and size {size}, expected text and whole numbers")
            yield from annotated(where, images / name, objects[number], size)
        except DataError as error:
            yield error


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path}: no list {key!r}; expected COCO JSON with lists of images, annotations and categories")
    return content


def _get(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise DataError(f"{where}: {key!r} is missing")
    return record[key]


def _id(value: Any, known: dict[Any, Any], where: str) -> Any:
    if not isinstance(value, int | str) or value not in known:
        raise DataError(f"{where}: unknown id {value!r}")
    return value


def _new(value: Any, known: dict[Any, Any], where: str) -> Any:
    if not isinstance(value, int | str) or value in known:
        raise DataError(f"{where}: got id {value!r}, expected a number or text that occurs once")
    return value


def _box(value: Any, where: str) -> Box:
    try:
        left, top, width, height = (float(number) for number in value if not isinstance(number, str))
        return Box(left, top, left + width, top + height, "original")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: bbox: got {value!r}, expected left, top, width, height ({error})") from error
