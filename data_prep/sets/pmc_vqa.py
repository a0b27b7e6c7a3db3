"""PMC-VQA: multiple-choice questions about figures of articles. Its tables have two versions."""

from collections.abc import Iterator, Mapping
from functools import partial

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, csv_rows
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError

SPLITS = ("train", "test", "test_clean", "train_2", "test_2")
LETTERS = ("A", "B", "C", "D")
_NEEDED = ("Figure_path", "Question", "Answer", *(f"Choice {letter}" for letter in LETTERS))


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split. Each table in the folder is a split."""
    there = [split for split in SPLITS if published.has(f"{split}.csv")]
    if not there:
        raise DataError(f"{published.folder}: no {' or '.join(f'{split}.csv' for split in SPLITS)} found")
    images = published.images("images", "figures", "images.zip", "images_2.zip")
    return {split: _records(published, split, images) for split in there}


def _records(published: Published, split: str, images: Images) -> Iterator[Record]:
    rows = csv_rows(published.file(f"{split}.csv"), _NEEDED, published.bad)
    return published.records(rows, partial(_record, split=split, images=images))


def _record(row: Row, split: str, images: Images) -> Record:
    # Version 1 has a column for the answer's letter and another for its text.
    key = "Answer_label" if "Answer_label" in row.values else "Answer"
    options = Options(tuple((letter, _choice(row, letter)) for letter in LETTERS))
    answer = options.letter(row.text(key), f"{row.where}: {key}", "letter")
    figure = row.text("Figure_path")
    sample = Sample(
        sample_id=f"pmc-vqa-{split}-{row.number}",
        question=row.text("Question"),
        images=(),
        answer=answer,
        answers=options.equal_to(answer),
        options=options.pairs,
        metadata={"figure": figure} | ({"caption": row.text("Caption")} if "Caption" in row.values else {}),
    )
    return Record(sample, (images.find(figure, row.where),), row.where)


def _choice(row: Row, letter: str) -> str:
    """Returns the text of an option, without its leading letter."""
    return row.text_or_nothing(f"Choice {letter}").removeprefix(f"{letter}:").strip()


SET = DataSet(
    name="pmc_vqa",
    title="PMC-VQA: multiple-choice questions about figures of PubMed Central articles",
    url="https://huggingface.co/datasets/RadGenome/PMC-VQA",
    licence="CC BY-SA; each figure has the licence of its article",
    citation="Zhang et al., PMC-VQA: visual instruction tuning for medical visual question answering, arXiv:2305.10415",
    layout="any of train.csv, test.csv, test_clean.csv, train_2.csv, test_2.csv; images/, figures/, images.zip or images_2.zip",
    counts={"test_clean": 2_000, "train_2": 152_603, "test_2": 33_430},
    notes=("train, test and test_clean are version 1; train_2 and test_2 are version 2, without compound figures.",),
)
