"""MMMU's five medical subjects: options and answers as Python literals, up to seven images."""

import pytest

from data_prep.reading.published import Published
from data_prep.sets.mmmu_medical import IMAGES, SET, SUBJECTS, read
from tests.kit.datasets import assert_round_trip, parquet, read_back
from tests.kit.images import picture
from vitar_jax.errors import DataError


def row(number, **change):
    row = {
        "id": f"validation_Pharmacy_{number}",
        "question": "<image 1> Which of <image 2> is it?",
        "options": "['A\\'s choice', '<image 2>', \"none\"]",
        "explanation": "",
        "img_type": "['Tables']",
        "answer": "C",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Biochemistry",
        **dict.fromkeys(IMAGES),
        "image_1": {"bytes": picture(number), "path": "a.png"},
        "image_2": {"bytes": picture(number + 1), "path": "b.png"},
    }
    return row | change


def published(folder, *rows):
    for n, subject in enumerate(SUBJECTS):
        parquet(folder / subject / "validation-00000-of-00001.parquet", [row(n * 10)] if n else [row(0), *rows])
    return folder


def test_options_answers_and_images(build_set, tmp_path):
    rows = (
        row(1, options="[]", question_type="open", answer="['4', 'four']"),
        row(2, answer="?", image_2=None),
        row(3, options="[]", question_type="open", answer="23.5"),
    )
    source = published(tmp_path / "source", *rows)
    data_dir = build_set("mmmu_medical", source)
    assert_round_trip(SET.name, read, source, data_dir)
    samples = read_back(data_dir, "mmmu_medical", "validation")
    assert [sample.metadata["subject"] for sample in samples] == [SUBJECTS[0]] * 4 + list(SUBJECTS[1:])
    closed, several, unknown, opened = samples[:4]
    assert closed.options == (("A", "A's choice"), ("B", "<image 2>"), ("C", "none")) and closed.answer == "C"
    assert [len(sample.images) for sample in samples[:4]] == [2, 2, 1, 2] and unknown.answer == ""
    assert (several.answer, several.answers, several.options) == ("4", ("4", "four"), ())
    assert opened.answer == "23.5" and "explanation" in opened.metadata


@pytest.mark.parametrize("gold", ["C", "none", "(C)", "['C']", "3"])
@pytest.mark.parametrize("options", ["['x', 'y', 'none']", "['x' 'y' 'none']", '["x", "y", "none"]'])
def test_a_gold_answer_becomes_a_letter(tmp_path, gold, options):
    rows = list(read(Published(published(tmp_path, row(1, answer=gold, options=options))))["validation"])
    assert rows[1].sample.answer == "C" and [text for _, text in rows[1].sample.options] == ["x", "y", "none"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": "__import__('os').getcwd()"}, "options: got .*, expected a list"),
        ({"options": "['a', None]"}, "options: got None, expected text"),
        ({"question_type": "cloze"}, "question_type: got 'cloze'"),
        ({"image_1": {"bytes": None, "path": "a.png"}}, "image_1: got NoneType, expected the bytes of an image"),
        ({"answer": "D"}, "answer: got 'D', expected one of the options A .A's choice., B"),
        ({"answer": None}, "answer is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=f"{SUBJECTS[0]}/validation-00000-of-00001.parquet, row 1: {words}"):
        list(read(Published(published(tmp_path, row(1, **change))))["validation"])


def test_a_missing_subject_is_named(tmp_path):
    (published(tmp_path) / "Pharmacy").rename(tmp_path / "Physics")
    with pytest.raises(DataError, match="no Pharmacy/.* found"):
        read(Published(tmp_path))
