"""SLAKE 1.0: questions in English and Chinese about CT, MRI and X-ray images.

Beside an image may lie `detection.json`, the boxes of its organs and abnormalities: a list of {name: [x, y, width, height]} in
pixels. This form has not been verified against the published files. Boxes whose names occur in the question or answer are the
sample's `boxes`, and the others are in `metadata["other_boxes"]`. If no name occurs, all are `boxes`: any may show the answer.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.tables import Row, json_rows
from vitar_jax.episodes.regions import Box, inside
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image

Findings = list[tuple[str, Box]]  # named boxes of one image

FILES = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}
LANGUAGES = ("en", "zh")
_METADATA = ("img_name", "q_lang", "location", "modality", "answer_type", "base_type", "content_type")


def read(published: Published) -> Mapping[str, list[Record]]:
    """Returns the records by split and language. Only splits of the same language have disjoint images."""
    splits: dict[str, list[Record]] = defaultdict(list)
    images = published.images("imgs", "imgs.zip")
    findings: dict[str, Findings] = {}
    for split, names in FILES.items():
        rows = json_rows(published.file(*names), published.bad)
        for record in published.records(rows, partial(_record, images=images, findings=findings)):
            splits[f"{split}_{record.sample.metadata['q_lang']}"].append(record)
    return splits


def _findings(image: str, images: Images, where: str) -> Findings:
    """Reads the boxes of an image, if it has any."""
    name = image.rpartition("/")[0] + "/detection.json"
    file = images.find_if_any(name, where)
    if file is None:
        return []
    try:
        size = open_image(images.find(image, where).read()).size
        listed = [item for entry in json.loads(file.read()) for item in entry.items()]
        return [(str(label), _box(corner, size)) for label, corner in listed]
    except ImageError as error:
        raise DataError(f"{where}: image {image}: {error}") from error
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: {error}; expected a list of {{name: [x, y, width, height]}} in pixels") from error


def _box(corner: Any, size: tuple[int, int]) -> Box:
    x, y, width, height = corner
    return inside(Box(x, y, x + width, y + height, "original"), size)


def _record(row: Row, images: Images, findings: dict[str, Findings]) -> Record:
    """Makes the record of a row. `findings` has those of images that were read, and gets those of this row's image."""
    if row.text("q_lang") not in LANGUAGES:
        raise row.wrong("q_lang", " or ".join(LANGUAGES))
    name = row.text("img_name")
    if name not in findings:
        findings[name] = _findings(name, images, row.where)
    texts = f"{row.text('question')}\n{row.text_or_nothing('answer')}"
    named = {label for label, _ in findings[name] if re.search(rf"\b{re.escape(label)}\b", texts, re.IGNORECASE)}
    shown = named or {label for label, _ in findings[name]}
    others = [list(box.xyxy) for label, box in findings[name] if label not in shown]
    metadata = {key: row.text(key) for key in _METADATA} | {"triple": row.list("triple")}
    sample = Sample(
        sample_id=f"slake-{row.text('qid')}",
        question=row.text("question"),
        images=(),
        answer=row.text_or_nothing("answer"),
        boxes=tuple(box for label, box in findings[name] if label in shown),
        metadata=metadata | ({"other_boxes": others} if others else {}),
    )
    return Record(sample, (images.find(name, row.where),), row.where)


SET = DataSet(
    name="slake",
    title="SLAKE: a semantically labelled, knowledge-enhanced data set for medical visual question answering",
    url="https://www.med-vqa.com/slake",
    licence="CC-BY-4.0",
    citation="Liu et al., SLAKE: a semantically-labeled knowledge-enhanced dataset for medical VQA, arXiv:2102.09542",
    layout="train.json, validate.json (or validation.json), test.json, and the images, each perhaps with a detection.json, in "
    "imgs/ or imgs.zip",
    version="1.1.0",
    counts={
        "train_en": 4919,
        "train_zh": 4916,
        "validation_en": 1053,
        "validation_zh": 1046,
        "test_en": 1061,
        "test_zh": 1033,
    },
    notes=(
        "Training on both languages includes test images: only splits of the same language have disjoint images.",
        "The English training question 1622 has no answer.",
        "Boxes are read from detection.json, whose form has not been verified; see data_prep/sets/slake.py.",
        "Of the 416 closed English test questions, 61 have another answer than yes or no.",
    ),
)
