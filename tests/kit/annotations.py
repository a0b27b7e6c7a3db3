"""Reads annotations in any format, given the flags that name them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.curation import coco, masks, voc, yolo
from data_prep.curation.detections import Annotated, Detection, admit
from vitar_jax.errors import DataError

KINDS = ("coco", "voc", "yolo", "masks")
READ: dict[str, Callable[..., Any]] = {"coco": coco.read, "voc": voc.read, "yolo": yolo.read, "masks": masks.read}


def read(flags: list[str]) -> list[Annotated | DataError]:
    kind, annotations, images, classes = (flag.partition("=")[2] for flag in flags)
    names = [] if kind in ("coco", "voc") else [Path(classes)]
    return list(READ[kind](Path(annotations), Path(images), *names))


def admitted(flags: list[str]) -> dict[str, Detection]:
    records = read(flags)
    assert all(isinstance(record, Annotated) for record in records), records
    return {made.image.name: made for made in (admit(record) for record in records if isinstance(record, Annotated))}
