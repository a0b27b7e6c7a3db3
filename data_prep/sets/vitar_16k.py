"""ViTAR-16K: questions about detection images, with boxes around the evidence."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import ImageFile, Published, embedded_image
from vitar_jax.data.option_lists import read_options
from vitar_jax.data.tables import Row, parquet_rows
from vitar_jax.episodes.regions import Box, inside
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError, ImageError
from vitar_jax.processing.files import open_image


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    files = published.files("data/train-*.parquet" if published.has("data/*.parquet") else "train-*.parquet")
    rows = chain.from_iterable(parquet_rows(file, needed=("image", "question", "answer", "bbox")) for file in files)
    return {"train": published.records(enumerate(rows), _record)}


def _record(numbered: tuple[int, Row]) -> Record:
    number, row = numbered
    name = f"vitar-16k-{number}"
    text = row.text("question").removeprefix("<image>").strip()
    split, options, answer = read_options(text, row.text("answer"), row.where)
    if not options.pairs and re.fullmatch("[A-Z]", answer):
        raise row.wrong("question", 'text with options "A) ... B) ...", because the answer is a letter')
    image = embedded_image(row, "image", name)
    sample = Sample(
        sample_id=name,
        question=split.question,
        images=(),
        answer=answer,
        answers=options.equal_to(answer),
        options=options.pairs,
        boxes=_boxes(row, image),
        metadata={"instruction": split.instruction} if split.instruction else {},
    )
    return Record(sample, (image,), row.where)


def _boxes(row: Row, image: ImageFile) -> tuple[Box, ...]:
    """Converts the published boxes, normalized to 0 to 1, into pixels of the image."""
    published = row.list("bbox")
    listed: list[Any] = [published] if published and not isinstance(published[0], list) else published
    try:
        size = open_image(image.read()).size
        boxes = tuple(inside(Box(*box, frame="normalized"), size) for box in listed)
    except ImageError as error:
        raise DataError(f"{row.where}: image: {error}") from error
    except (TypeError, ValueError):
        boxes = ()
    if not boxes:
        raise row.wrong("bbox", "boxes of four numbers x1 < x2, y1 < y2 from 0 to 1")
    return boxes


SET = DataSet(
    name="vitar_16k",
    title="ViTAR-16K: questions made from medical detection data, with boxes",
    url="https://huggingface.co/datasets/jline/ViTAR-16K",
    licence="see the card on the hub; also that of each detection data set",
    citation="ViTAR, arXiv:2510.10052",
    layout="train-*.parquet or data/train-*.parquet (image, question with options, answer, bbox from 0 to 1)",
    notes=("The authors do not name the source detection data sets. Check that your evaluation sets share no images with it.",),
)
