"""OmniMedVQA, open-access part: multiple-choice questions made from 42 classification data sets."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, json_rows
from vitar_jax.episodes.sample import Sample, letters

QUESTIONS = "QA_information/Open-access/*.json"


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    return {"test": _records(published, published.files(QUESTIONS), published.images("Images"))}


def _records(published: Published, files: list[Path], images: Images) -> Iterator[Record]:
    for file in files:
        yield from published.records(json_rows(file, published.bad), partial(_record, part=file.stem, images=images))


def _record(row: Row, part: str, images: Images) -> Record:
    texts = [row.text(key) for key in ("option_A", "option_B", "option_C", "option_D") if key in row.values]
    options = Options(letters(texts, f"{row.where}: options"))
    path = row.text("image_path")
    modality = "modality_type" if "modality_type" in row.values else "modality"  # one published record has this key
    sample = Sample(
        sample_id=f"omnimedvqa-{part}-{row.text('question_id')}",
        question=row.text("question"),
        images=(),
        answer=options.letter(row.text("gt_answer"), f"{row.where}: gt_answer", "text"),
        options=options.pairs,
        metadata={
            "dataset": row.text("dataset"),
            "question_type": row.text("question_type"),
            "modality_type": row.text(modality),
            "image_path": path,
        },
    )
    return Record(sample, (images.find(path.removeprefix("Images/"), row.where),), row.where)


SET = DataSet(
    name="omnimedvqa",
    title="OmniMedVQA, open access: multiple-choice questions over 12 modalities",
    url="https://huggingface.co/datasets/foreverbeliever/OmniMedVQA",
    licence="that of each of its 42 source data sets",
    citation="Hu et al., OmniMedVQA: a new large-scale comprehensive evaluation benchmark for medical LVLM, arXiv:2402.09181",
    layout="QA_information/Open-access/*.json and Images/, as unpacked from OmniMedVQA.zip",
    counts={"test": 88_996},
    notes=("The images come from training sets that models may have seen.",),
)
