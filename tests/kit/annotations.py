"""Reads annotations in any format, given the flags that name them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.curation import coco, masks, voc, yolo
from data_prep.curation.detections import Annotated, Detection, admit
from data_prep.curation.files import Ignored
from vitar_jax.episodes.regions import Unit
from vitar_jax.errors import DataError

KINDS = ("coco", "voc", "yolo", "masks")
READ: dict[str, Callable[..., Any]] = {"coco": coco.read, "voc": voc.read, "yolo": yolo.read, "masks": masks.read}


def read(flags: list[str], unit: Unit = "") -> list[Annotated | DataError]:
    """Returns the records, without the ignored files."""
    kind, annotations, images, classes = (flag.partition("=")[2] for flag in flags)
    names = [] if kind in ("coco", "voc") else [Path(classes)]
    records = READ[kind](Path(annotations), Path(images), *names, **({"unit": unit} if unit else {}))
    return [record for record in records if not isinstance(record, Ignored)]


def malformed(flags: list[str]) -> list[str]:
    """Returns the error message of each record that is malformed or does not fit its image."""
    errors = []
    for record in read(flags):
        try:
            errors.append(str(record)) if isinstance(record, DataError) else admit(record)
        except DataError as error:
            errors.append(str(error))
    return errors


def admitted(flags: list[str]) -> dict[str, Detection]:
    records = read(flags)
    assert all(isinstance(record, Annotated) for record in records), records
    return {made.image.name: made for made in (admit(record) for record in records if isinstance(record, Annotated))}
