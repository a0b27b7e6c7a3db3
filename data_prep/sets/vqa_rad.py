"""VQA-RAD: from its published JSON and image folder, which `data_prep.vqa_rad` reads, or from its copy on the hub."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from data_prep import vqa_rad
from data_prep.building.records import DataSet, Record
from data_prep.reading.published import ImageFile, Published
from data_prep.sets.path_vqa import rows_by_split


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    if published.has("data/*.parquet"):
        return rows_by_split(published, "vqa-rad", get_args(vqa_rad.Split))
    published.file(vqa_rad.QUESTIONS)
    return {split: _records(published, split) for split in get_args(vqa_rad.Split)}


def _records(published: Published, split: vqa_rad.Split) -> Iterator[Record]:
    for sample in vqa_rad.read(published.folder, split):
        (path,) = map(Path, map(str, sample.images))
        yield Record(
            replace(sample, images=()), (ImageFile(path.name, path.read_bytes),), f"{vqa_rad.QUESTIONS}, {sample.sample_id}"
        )


SET = DataSet(
    name="vqa_rad",
    title="VQA-RAD: what clinicians ask about radiology images",
    url="https://osf.io/89kps",
    licence="CC0-1.0",
    citation="Lau et al., A dataset of clinically generated visual questions and answers about radiology images, 2018",
    layout=f"'{vqa_rad.QUESTIONS}', and the images in '{vqa_rad.IMAGE_FOLDERS[0]}' or '{vqa_rad.IMAGE_FOLDERS[1]}';\n"
    "or, without what kind of question each is, the data/*.parquet of flaviagiammarino/vqa-rad",
    counts={"train": 1793, "test": 451},
    notes=(
        "Of 2,248 questions, test has the 451 of phrase type test_freeform and test_para; train has the others, each once.",
        "Closed test questions are 272 by answer_type, of which 251 are answered with yes or no.",
        "Some images carry the name of whoever uploaded them in the margin.",
    ),
)
