"""MMMU, Health & Medicine: college exam questions from five subjects, some with several images."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import ImageFile, Published, embedded_image
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, as_list, parquet_rows
from vitar_jax.episodes.sample import Sample

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
SPLITS = ("dev", "validation", "test")
IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_METADATA = ("question_type", "explanation", "topic_difficulty", "subfield", "img_type")


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    for subject in SUBJECTS:
        published.files(f"{subject}/*.parquet")
    return {split: _records(published, split) for split in SPLITS if published.has(f"*/{split}-*.parquet")}


def _records(published: Published, split: str) -> Iterator[Record]:
    for subject in SUBJECTS:
        for file in published.files(f"{subject}/{split}-*.parquet"):
            rows = parquet_rows(file, needed=("id", "question", "options", "answer", "question_type", *IMAGES))
            yield from published.records(rows, partial(_record, subject=subject))


def _record(row: Row, subject: str) -> Record:
    name = row.text("id")
    options = Options.published(row)
    if row.text("question_type") not in ("multiple-choice", "open"):
        raise row.wrong("question_type", "multiple-choice or open")
    metadata: dict[str, Any] = {"subject": subject} | {key: row.text_or_nothing(key) for key in _METADATA}
    where, gold = f"{row.where}: answer", row.text("answer")
    golds = [] if gold == "?" else as_list(gold, where) or [gold]  # the answers of the test split are not published
    answers = tuple(options.letter(one, where, "letter") for one in golds)
    sample = Sample(
        sample_id=name,
        question=row.text("question"),
        images=(),
        answer=next(iter(answers), ""),
        options=options.pairs,
        metadata=metadata,
        answers=options.equal_to(*answers),
    )
    images: tuple[ImageFile, ...] = tuple(
        embedded_image(row, key, f"{name} {key}") for key in IMAGES if key in row.values
    )
    return Record(sample, images, row.where)


SET = DataSet(
    name="mmmu_medical",
    title="MMMU, Health & Medicine: college exam questions from five subjects",
    url="https://huggingface.co/datasets/MMMU/MMMU",
    licence="Apache-2.0",
    citation="Yue et al., MMMU: a massive multi-discipline multimodal understanding and reasoning benchmark, arXiv:2311.16502",
    layout="SUBJECT/{dev,validation,test}-*.parquet for " + ", ".join(SUBJECTS),
    counts={"dev": 25, "validation": 150, "test": 1_752},
    hub_files=tuple(f"{subject}/*" for subject in SUBJECTS),
    notes=(
        "Questions and options refer to the images of the record, in order, as <image 1>, <image 2>, ...",
        "The answers of the test split are not published.",
    ),
)
