"""Samples of an evaluation: written down, read again, and what they belong to."""

import base64
import dataclasses

import pytest
from PIL import Image

from tests.kit.images import picture
from vitar_jax.episodes.sample import Sample, question_sample
from vitar_jax.episodes.trajectory_files import TrajectoryWriter
from vitar_jax.errors import DataError
from vitar_jax.evaluation.outcomes import clusters, read_outcomes, record_samples

GREY = [Image.new("L", (8, 8), value) for value in (10, 20)]
SAMPLES = [
    Sample("a", "Which?", (GREY[0],), "A", (("A", "flat"), ("B", "rows")), metadata={"centre": (1.5, 2), "patient_id": 7}),
    Sample("b", "Où ?", ("b.png", "c.png"), "là", metadata={"answer_type": " Open"}),
    Sample("c", "Is it?", (GREY[0].copy(),), "", metadata={"answer_type": "CLOSED"}),
    Sample("d", "What is a CT?", (), "x"),
    Sample("e", "Which?", (GREY[1],), "A"),
]


@pytest.fixture
def folder(tmp_path):
    assert list(record_samples(iter(SAMPLES), tmp_path)) == SAMPLES
    TrajectoryWriter(tmp_path)
    return tmp_path


def test_samples_come_back(folder):
    outcomes = read_outcomes(folder)
    for outcome, sample in zip(outcomes, SAMPLES, strict=True):
        for name in ("sample_id", "question", "options", "answer"):
            assert getattr(outcome, name) == getattr(sample, name)
        assert outcome.metadata.keys() == sample.metadata.keys()
        assert (outcome.status, outcome.prediction) == ("failed", "")
    assert [outcome.kind for outcome in outcomes] == [None, "open", "closed", None, None]


def test_samples_of_the_same_images_belong_together(folder):
    what, of = clusters(read_outcomes(folder))
    assert what == "image"
    assert [of.index(cluster) for cluster in of] == [0, 1, 0, 3, 4]


def test_frames_of_one_file_belong_together_and_no_picture_is_recorded(tmp_path):
    text = base64.b64encode(picture(1, size=(60, 50))).decode()
    images = [("a.dcm#frame=1",), ("a.dcm#frame=12",), ("b.dcm",), (text,), (f"data:image/png;base64,{text}",), (text,)]
    samples = [Sample(str(n), "Which?", named, "x") for n, named in enumerate(images)]
    assert len(list(record_samples(samples, tmp_path))) == 6
    TrajectoryWriter(tmp_path)
    outcomes = read_outcomes(tmp_path)
    _, of = clusters(outcomes)
    assert [of.index(cluster) for cluster in of] == [0, 0, 2, 3, 4, 3]
    assert outcomes[1].images == ("a.dcm#frame=12",) and text[20:60] not in (tmp_path / "samples.jsonl").read_text()
    assert question_sample(text, "Which?").sample_id == outcomes[3].images[0]


def test_samples_belong_to_patients_where_all_have_one(folder):
    outcomes = read_outcomes(folder)
    known = [dataclasses.replace(outcome, metadata={"patient_id": i // 2}) for i, outcome in enumerate(outcomes)]
    assert clusters(known) == ("patient_id", ["0", "0", "1", "1", "2"])
    assert clusters([*known[1:], outcomes[1]])[0] == "image"


def test_samples_are_written_when_all_have_passed(tmp_path):
    passing = record_samples(SAMPLES, tmp_path)
    next(passing)
    with pytest.raises(DataError, match="--phase=predict"):
        read_outcomes(tmp_path)
    list(passing)
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="samples.jsonl"):
        read_outcomes(tmp_path)


def test_two_samples_of_one_name_are_not_merged(tmp_path):
    list(record_samples([*SAMPLES, dataclasses.replace(SAMPLES[1], sample_id="d")], tmp_path))
    TrajectoryWriter(tmp_path)
    with pytest.raises(DataError, match="samples.jsonl: sample 'd' occurs twice"):
        read_outcomes(tmp_path)
