"""SLAKE 1.0: questions in English and Chinese about CT, MRI and X-ray images."""

from collections import defaultdict
from collections.abc import Mapping

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.tables import Row, json_rows
from vitar_jax.episodes.sample import Sample

FILES = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}
LANGUAGES = ("en", "zh")
_METADATA = ("img_name", "q_lang", "location", "modality", "answer_type", "base_type", "content_type")


def read(published: Published) -> Mapping[str, list[Record]]:
    """Returns the records by split and language. Only splits of the same language have disjoint images."""
    splits: dict[str, list[Record]] = defaultdict(list)
    images = published.images("imgs", "imgs.zip")
    for split, names in FILES.items():
        for row in json_rows(published.file(*names)):
            if row.text("q_lang") not in LANGUAGES:
                raise row.wrong("q_lang", " or ".join(LANGUAGES))
            splits[f"{split}_{row.text('q_lang')}"].append(_record(row, images))
    return splits


def _record(row: Row, images: Images) -> Record:
    name = row.text("img_name")
    sample = Sample(
        sample_id=f"slake-{row.text('qid')}",
        question=row.text("question"),
        images=(),
        answer=row.text_or_nothing("answer"),
        metadata={key: row.text(key) for key in _METADATA} | {"triple": row.list("triple")},
    )
    return Record(sample, (images.find(name, row.where),), row.where)


SET = DataSet(
    name="slake",
    title="SLAKE: a semantically labelled, knowledge-enhanced data set for medical visual question answering",
    url="https://www.med-vqa.com/slake",
    licence="CC-BY-4.0",
    citation="Liu et al., SLAKE: a semantically-labeled knowledge-enhanced dataset for medical VQA, arXiv:2102.09542",
    layout="train.json, validate.json (or validation.json), test.json, and the images in imgs/ or imgs.zip",
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
        "Of the 416 closed English test questions, 61 have another answer than yes or no.",
    ),
)
