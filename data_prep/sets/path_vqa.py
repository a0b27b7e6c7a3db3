"""PathVQA, from the Parquet files on the Hugging Face hub, which contain the images."""

from collections.abc import Iterator, Mapping
from itertools import chain

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Published, embedded_image
from vitar_jax.data.tables import Row, parquet_rows
from vitar_jax.episodes.sample import Sample


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    return rows_by_split(published, "path-vqa", ("train", "validation", "test"))


def rows_by_split(published: Published, name: str, splits: tuple[str, ...]) -> dict[str, Iterator[Record]]:
    """Returns the records of `data/SPLIT-*.parquet` with columns image, question, answer. Ids are NAME-SPLIT-NUMBER."""
    return {split: _records(published, name, split) for split in splits if published.files(f"data/{split}-*.parquet")}


def _records(published: Published, name: str, split: str) -> Iterator[Record]:
    def record(numbered: tuple[int, Row]) -> Record:
        number, row = numbered
        sample = Sample(f"{name}-{split}-{number}", row.text("question"), images=(), answer=row.text("answer"))
        return Record(sample, (embedded_image(row, "image", sample.sample_id),), row.where)

    files = published.files(f"data/{split}-*.parquet")
    rows = chain.from_iterable(parquet_rows(file, needed=("image", "question", "answer")) for file in files)
    return published.records(enumerate(rows), record)


SET = DataSet(
    name="path_vqa",
    title="PathVQA: questions about pathology images from textbooks and a digital library",
    url="https://huggingface.co/datasets/flaviagiammarino/path-vqa",
    licence="MIT according to its card; the textbooks' publishers keep the rights to images and captions",
    citation="He et al., PathVQA: 30000+ questions for medical visual question answering, arXiv:2003.10286",
    layout="data/train-*.parquet, data/validation-*.parquet, data/test-*.parquet (image, question, answer)",
    counts={"train": 19_654, "validation": 6_259, "test": 6_719},
    hub_files=("data/*",),
    notes=("3,362 test questions have the answer yes or no.",),
)
