"""The questions that ViTAR's published code evaluates on: several benchmarks as multiple choice, in one JSON file."""

from collections.abc import Iterator, Mapping
from functools import partial

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, json_rows
from vitar_jax.episodes.sample import Sample

QUESTIONS = "medical_multimodel_evaluation_data.json"


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    rows = json_rows(published.file(QUESTIONS), published.bad)
    return {"test": published.records(rows, partial(_record, images=published.images("images", "images.zip")))}


def _record(row: Row, images: Images) -> Record:
    options = Options.published(row)
    names = [name.removeprefix("images/") if isinstance(name, str) else "" for name in row.list("image")]
    if not all(names):
        raise row.wrong("image", "a list of file names")
    sample = Sample(
        sample_id=f"vitar-eval-{row.number}",
        question=row.text("question"),
        images=(),
        answer=options.letter(row.text("answer"), f"{row.where}: answer", "text"),
        options=options.pairs,
        metadata={"dataset": row.text("dataset"), "subset": row.text_or_nothing("subset")},
    )
    return Record(sample, tuple(images.find(name, row.where) for name in names), row.where)


SET = DataSet(
    name="vitar_eval",
    title="ViTAR's evaluation: medical benchmarks as multiple choice",
    url="https://huggingface.co/datasets/FreedomIntelligence/Medical_Multimodal_Evaluation_Data",
    licence="that of each benchmark",
    citation="Chen et al., HuatuoGPT-Vision, arXiv:2406.19280; used by ViTAR, arXiv:2510.10052",
    layout=f"{QUESTIONS}, and images/ or images.zip",
    notes=(
        "The metadata name the benchmark of each question. Published counts: OmniMedVQA 11,124, PathVQA 3,362, PMC-VQA 2,000, "
        "SLAKE 416, VQA-RAD 251, and MMMU-Medical 150 (its validation split).",
    ),
)
