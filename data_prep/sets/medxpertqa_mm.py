"""MedXpertQA, multimodal subset: expert-level questions with one to six images and five options."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, as_literal, jsonl_rows
from vitar_jax.episodes.sample import Sample

FILES = {"dev": ("MM/dev.jsonl",), "test": ("MM/test.jsonl", "medxpertqa_mm_input.jsonl")}
_METADATA = ("medical_task", "body_system", "question_type")


def read(published: Published) -> Mapping[str, list[Record]]:
    """Returns the records by split, from the files of the hub or of the GitHub repository, which has no `dev`."""
    images = published.images("images", "images.zip")
    splits = {split: names for split, names in FILES.items() if split == "test" or published.has(names[0])}
    tables = {split: jsonl_rows(published.file(*names), published.bad) for split, names in splits.items()}
    return {split: list(published.records(rows, partial(_record, images=images))) for split, rows in tables.items()}


def _record(row: Row, images: Images) -> Record:
    options = _options(row)
    label = row.values.get("label")
    (gold,) = label if isinstance(label, list) and len(label) == 1 else (label,)
    answer = options.letter(gold, f"{row.where}: label", "letter")
    # The question text repeats the options.
    question = row.text("question").partition("\nAnswer Choices:")[0].strip()
    names = [_plain(row, "images", image, "image_path") for image in row.list("images")]
    sample = Sample(
        sample_id=row.text("id"),
        question=question,
        images=(),
        answer=answer,
        answers=options.equal_to(answer),
        options=options.pairs,
        metadata={key: row.text(key) for key in _METADATA},
    )
    return Record(sample, tuple(images.find(name, row.where) for name in names), row.where)


def _options(row: Row) -> Options:
    """Returns the options: an object keyed by letter on the hub, a list of objects on GitHub."""
    options = as_literal(row.values.get("options"), f"{row.where}: options")
    if isinstance(options, list):
        options = {_plain(row, "options", option, "letter"): _plain(row, "options", option, "content") for option in options}
    if not isinstance(options, dict) or not options:
        raise row.wrong("options", "an object or a list of options")
    return Options.of(options, f"{row.where}: options")


def _plain(row: Row, key: str, value: Any, inner: str) -> str:
    """Returns `value` if it is text, or the text under `inner` if it is an object."""
    value = value.get(inner) if isinstance(value, dict) else value
    if not isinstance(value, str) or not value.strip():
        raise row.wrong(key, f"texts, or objects with a text {inner}")
    return value.strip()


SET = DataSet(
    name="medxpertqa_mm",
    title="MedXpertQA MM: expert-level questions with images",
    url="https://huggingface.co/datasets/TsinghuaC3I/MedXpertQA",
    licence="MIT",
    citation="Zuo et al., MedXpertQA: benchmarking expert-level medical reasoning and understanding, arXiv:2501.18362",
    layout="MM/dev.jsonl and MM/test.jsonl (or GitHub's medxpertqa_mm_input.jsonl), and images/ or images.zip",
    counts={"test": 2_000},
    hub_files=("MM/*", "images.zip"),
    notes=("The test split has 1,446 reasoning and 554 understanding questions.",),
)
