"""MedVIGIL: multiple-choice probes of cases whose visual evidence is intact, masked, mirrored or contradicted."""

from collections.abc import Iterator, Mapping
from functools import partial

from data_prep.building.records import DataSet, Record
from data_prep.reading.published import Images, Published
from vitar_jax.data.options import Options
from vitar_jax.data.tables import Row, csv_rows
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError

LETTERS = ("A", "B", "C", "D", "E")
_PROBES = ("case_id", "probe_id", "probe_kind", "question", "correct_letter", *(f"choice_{letter}" for letter in LETTERS))
_KEPT = ("probe_kind", "probe_axis", "expected_behavior")


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split: all probes are one test split."""
    cases = {row.text("case_id"): row for row in csv_rows(published.file("manifest.csv"), ("case_id", "risk_tier"), None)}
    images = published.images("images", "images_perturbed", "images.zip", "images_perturbed.zip")
    rows = csv_rows(published.file("probes_mcq.csv"), _PROBES, published.bad)
    return {"test": published.records(rows, partial(_record, cases=cases, images=images))}


def _record(row: Row, cases: Mapping[str, Row], images: Images) -> Record:
    case = row.text("case_id")
    if case not in cases:
        raise DataError(f"{row.where}: case_id: manifest.csv has no case {case}")
    options = Options(tuple((letter, text) for letter in LETTERS if (text := row.text_or_nothing(f"choice_{letter}"))))
    answer = options.letter(row.text("correct_letter"), f"{row.where}: correct_letter", "letter")
    tier, source = cases[case].text("risk_tier"), cases[case].text_or_nothing("source_dataset")
    image = row.text_or_nothing("image_file").removeprefix("images_perturbed/")  # a probe of knowledge alone has none
    sample = Sample(
        sample_id=f"medvigil-{row.text('probe_id')}",
        question=row.text("question"),
        images=(),
        answer=answer,
        answers=options.equal_to(answer),
        options=options.pairs,
        # A case is the unit that intervals are clustered by.
        metadata={"patient": case, "risk_tier": tier, **({"source_dataset": source} if source else {})}
        | {key: row.text(key) for key in _KEPT if row.text_or_nothing(key)},
    )
    return Record(sample, (images.find(image, row.where),) if image else (), row.where)


SET = DataSet(
    name="medvigil",
    title="MedVIGIL: probes of medical questions whose visual evidence is intact or broken",
    url="https://huggingface.co/datasets/jhq0709/MedVIGIL",
    licence="by source: VQA-RAD CC0, SLAKE CC BY-SA 4.0, ROCO CC BY-NC-SA 4.0, MIMIC-CXR and CheXpert credentialed",
    citation="Jiang et al., MedVIGIL: Evaluating Trustworthy Medical VLMs Under Broken Visual Evidence, arXiv:2605.07919",
    layout="manifest.csv, probes_mcq.csv, images/ and images_perturbed/",
    counts={"test": 2_556},
    notes=("Read by the columns of the published harness; the data set itself was not at hand.",),
)
