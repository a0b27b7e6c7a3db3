"""COCO JSON: `images`, `categories`, and `annotations` with a `bbox` of left, top, width and height in pixels.

Ids are text or numbers: "3", 3 and 3.0 are the same id.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.curation.detections import Annotated, Found, annotated, whole_number
from vitar_jax.data.paths import find_file
from vitar_jax.episodes.regions import OVERHANG, Box, Size, Unit
from vitar_jax.errors import DataError

Id = int | str


def read(annotations: Path, images: Path, unit: Unit = "") -> Iterator[Annotated | DataError]:
    """Yields the images of a COCO file, or a DataError for each malformed record.

    Args:
      unit: Unit of the boxes; only for the check that they are not corners.

    Raises:
      DataError: If the file cannot be read, a category is malformed, an id occurs twice, an annotation names no image, or the
        boxes seem to be corners.
    """
    lists = _load(annotations)
    names: dict[Id, str] = {}
    for number, category in enumerate(lists["categories"]):
        where = f"{annotations}, category {number}"
        if not isinstance(name := _get(category, "name", where), str) or not name.strip():
            raise DataError(f"{where}: name: got {name!r}, expected text")
        names[_new(_get(category, "id", where), names, where)] = name.strip()

    known: dict[Id, int] = {}
    for number, image in enumerate(lists["images"]):
        where = f"{annotations}, image {number}"
        known[_new(_get(image, "id", where), known, where)] = number
    objects: dict[int, list[Found]] = defaultdict(list)
    seen: dict[Id, None] = {}
    for number, annotation in enumerate(lists["annotations"]):
        where = f"{annotations}, annotation {number}"
        if isinstance(annotation, dict) and annotation.get("id") is not None:
            seen[_new(annotation["id"], seen, where)] = None
        # Without its annotation, an image would count as one without the finding. It cannot be told which image that is.
        image = known[_id(_get(annotation, "image_id", where), known, f"{where}: image_id")]
        try:
            name = names[_id(_get(annotation, "category_id", where), names, f"{where}: category_id")]
            if (crowd := annotation.get("iscrowd")) and whole_number(crowd) != 0:
                raise DataError(f"{where}: iscrowd: got {crowd!r}, a group, expected the box of one object")
            objects[image].append((name, _box(_get(annotation, "bbox", where), where)))
        except DataError as error:
            objects[image].append(error)
    _refuse_corners(annotations, lists, known, unit)

    for number, image in enumerate(lists["images"]):
        where = f"{annotations}, image {number}"
        try:
            if not isinstance(name := _get(image, "file_name", where), str) or not name.strip():
                raise DataError(f"{where}: file_name: got {name!r}, expected text")
            yield from annotated(where, find_file(images, name.replace("\\", "/")), objects[number], _size(image, where))
        except DataError as error:
            yield error


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())  # in any encoding, with or without byte order mark
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


def _plain(value: Any) -> Id | None:
    """Returns an id as a whole number where it is one, else as text, or None if it is neither."""
    number = whole_number(value)
    return number if number is not None else value.strip() or None if isinstance(value, str) else None


def _id(value: Any, known: Mapping[Id, Any], where: str) -> Id:
    if (plain := _plain(value)) is None or plain not in known:
        raise DataError(f"{where}: unknown id {value!r}")
    return plain


def _new(value: Any, known: Mapping[Id, Any], where: str) -> Id:
    if (plain := _plain(value)) is None or plain in known:
        raise DataError(f"{where}: got id {value!r}, expected a number or text that occurs once")
    return plain


def _size(image: Mapping[str, Any], where: str) -> Size | None:
    """Returns (width, height), or None if both are missing."""
    given = image.get("width"), image.get("height")
    if given == (None, None):
        return None
    width, height = map(whole_number, given)
    if width is None or height is None:
        raise DataError(f"{where}: got size {given}, expected two whole numbers")
    return width, height


def _box(value: Any, where: str) -> Box:
    try:
        if isinstance(value, str):
            raise TypeError("text")
        left, top, width, height = map(float, value)
        return Box(left, top, left + width, top + height, "original")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: bbox: got {value!r}, expected left, top, width, height ({error})") from error


def _refuse_corners(annotations: Path, lists: Mapping[str, Sequence[Any]], known: Mapping[Id, int], unit: Unit) -> None:
    """Raises DataError if the boxes of a file seem to be left, upper, right, lower.

    All boxes could then be corners, and one exceeds its image, or each `area` is that between the corners.
    """
    whole = {"normalized": 1, "1000": 1000}.get(unit)
    beyond, areas = [], []
    for annotation in lists["annotations"]:
        try:
            left, top, right, lower = (float(number) for number in annotation["bbox"])
            image = lists["images"][known[_id(annotation["image_id"], known, "")]]
            width, height = (whole, whole) if whole else _size(image, "") or (math.inf, math.inf)
            area = float(annotation.get("area") or 0)
        except (TypeError, ValueError, KeyError, OverflowError, DataError):
            continue  # reported elsewhere
        slack = 0.01 * whole if whole else OVERHANG
        if right <= left or lower <= top or right > width + slack or lower > height + slack:
            return
        beyond.append(left + right > width + slack or top + lower > height + slack)
        between = (right - left) * (lower - top)
        areas.append(abs(area - between) <= 0.01 * between < abs(area - right * lower))
    if any(beyond) or (areas and all(areas)):
        raise DataError(
            f"{annotations}: bbox: got boxes that seem to be corners (left, upper, right, lower), expected left, top, "
            "width, height, all within their images"
        )
