"""OmniMedVQA's open-access files."""

import json

import pytest

from data_prep.reading.published import Published
from data_prep.sets.omnimedvqa import SET, read
from tests.kit.datasets import assert_round_trip, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.errors import DataError

RECORD = {
    "dataset": "ACRIMA",
    "question_id": "ACRIMA_0000",
    "question_type": "Modality Recognition",
    "question": "What imaging technique was employed?",
    "gt_answer": "Fundus imaging",
    "image_path": "Images/ACRIMA/Im553.png",
    "option_A": "CT",
    "option_B": "Fundus imaging",
    "option_C": "MRI",
    "modality_type": "Fundus Photography",
}


def published(folder, **change):
    odd = {key: value for key, value in RECORD.items() if key != "modality_type"} | {"modality": "CT", "question_id": "x"}
    records = [RECORD, odd | {"option_D": "X-ray", "gt_answer": "X-ray"} | change]
    files = {"QA_information/Open-access/ACRIMA.json": json.dumps(records), "Images/ACRIMA/Im553.png": picture(5)}
    return write_files(folder, files)


def test_two_to_four_options(build_set, tmp_path):
    source = published(tmp_path / "source")
    data_dir = build_set("omnimedvqa", source)
    assert_round_trip(SET.name, read, source, data_dir)
    first, second = read_back(data_dir, "omnimedvqa", "test")
    assert (first.answer, len(first.options)) == ("B", 3) and (second.answer, second.options[3]) == ("D", ("D", "X-ray"))
    assert first.metadata["modality_type"] == "Fundus Photography" and second.metadata["modality_type"] == "CT"


@pytest.mark.parametrize("gold", ["X-ray", "x-ray.", "D", "(D)", "D. X-ray"])
def test_a_gold_answer_becomes_a_letter(tmp_path, gold):
    (_, record) = read(Published(published(tmp_path, gt_answer=gold)))["test"]
    assert record.sample.answer == "D"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gt_answer": "Fundus"}, "gt_answer: got 'Fundus', expected one of the options A .CT., B .Fundus imaging., C"),
        ({"image_path": "Images/ACRIMA/none.png"}, "no such image: ACRIMA/none.png"),
        ({"dataset": None}, "dataset is missing"),
        ({"modality": ""}, "modality is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"ACRIMA.json, record 1: {words}"):
        list(read(Published(published(tmp_path, **change)))["test"])


def test_an_archive_that_is_not_unpacked_is_named(tmp_path):
    with pytest.raises(DataError, match="no QA_information.* found; OmniMedVQA.zip may need to be unpacked"):
        read(Published(write_files(tmp_path, {"OmniMedVQA.zip": b""})))
