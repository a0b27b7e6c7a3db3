"""VQA-RAD from made-up records: clean text, and errors that name file and record."""

import json

import pytest
from PIL import Image

from data_prep.sets.vqa_rad import QUESTIONS, main, source
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.errors import ConfigError, DataError, ImageError

RECORD = {
    "qid": 7,
    "image_name": "a.png",
    "question": "What is it?",
    "answer": 4,
    "phrase_type": "freeform",
    "answer_type": "OPEN ",
    "question_type": "COUNT",
    "image_organ": "CHEST",
}


@pytest.fixture
def made(tmp_path):
    """Writes a data set of these records, with one image."""

    def make(*records: object) -> str:
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("L", (64, 32)).save(tmp_path / "images" / "a.png")
        (tmp_path / QUESTIONS).write_text(json.dumps(records))
        return str(tmp_path)

    return make


def test_numbers_and_spaces_become_clean_text(made):
    (sample,) = source("train", directory=made(RECORD))
    assert (sample.sample_id, sample.answer, sample.metadata["answer_type"]) == ("vqa-rad-7", "4", "OPEN")


def test_equal_questions_are_kept_once_and_never_across_the_splits(made):
    directory = made(
        RECORD,
        RECORD | {"qid": 8},
        RECORD | {"qid": 9, "answer": "5"},
        RECORD | {"qid": 10, "answer": "5", "phrase_type": "test_para"},
    )
    assert [s.sample_id for s in source("train", directory=directory)] == ["vqa-rad-7"]
    assert [s.sample_id for s in source("test", directory=directory)] == ["vqa-rad-10"]


def test_the_command_ends_in_one_line_on_a_wrong_folder(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    empty = made()
    for directory, words in (
        (tmp_path / "nowhere", "nowhere: no such folder"),
        (tmp_path / "file", "file: no such folder"),
        (tmp_path / "images", "contains no image folder"),
        (empty, "holds 0 training and 0 test questions"),
    ):
        monkeypatch.setattr("sys.argv", ["vqa_rad", f"--directory={directory}"])
        with pytest.raises(SystemExit) as stopped:
            main()
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and words in error and error.count("\n") == 1


def test_the_published_folder_name_is_known(made, tmp_path):
    directory = made(RECORD)
    (tmp_path / "images").rename(tmp_path / "VQA_RAD Image Folder")
    (sample,) = source("train", directory=directory, demonstrations="two_rounds")
    assert sample.demonstration.looks[0].regions[0].xyxy == pytest.approx((12.8, 6.4, 51.2, 25.6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "record 1: answer is missing"),
        ({"answer": " "}, "record 1: answer is missing"),
        ({"question": ["x"]}, "record 1: question: got"),
        ({"qid": "x7"}, "record 1: qid: got 'x7'"),
        ({"qid": 7}, "vqa-rad-7 occurs twice"),
        ({"image_name": "b.png"}, r"vqa-rad-8: no such image: .*b\.png"),
        ({"image_name": "../a.png"}, "vqa-rad-8: no such image:"),
    ],
)
def test_a_malformed_record_is_named(made, change, message):
    with pytest.raises(DataError, match=message) as caught:
        source("train", directory=made(RECORD, RECORD | {"qid": 8} | change))
    assert QUESTIONS in str(caught.value)


def test_a_record_that_is_none(made):
    with pytest.raises(DataError, match="record 0: got a list"):
        source("train", directory=made([1]))


def test_missing_and_damaged_files_are_named(made, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        source("train", directory=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="contains no image folder"):
        source("train", directory=str(tmp_path))
    directory = made(RECORD)
    (tmp_path / QUESTIONS).unlink()
    with pytest.raises(DataError, match=f"{QUESTIONS}: no such file"):
        source("train", directory=directory)
    for content, message in (("[", "cannot be read as JSON"), ("{}", "got a dict")):
        (tmp_path / QUESTIONS).write_text(content)
        with pytest.raises(DataError, match=f"{QUESTIONS}: {message}"):
            source("train", directory=directory)
    (tmp_path / QUESTIONS).write_text(json.dumps([RECORD]))
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    damaged = source("train", directory=directory, demonstrations="two_rounds")
    with pytest.raises(ImageError, match=r"a\.png"):
        damaged[0]


@pytest.mark.parametrize(
    ("split", "options"),
    [
        ("validation", {"directory": "x"}),
        ("train", {"directory": "x", "tool": "cut"}),
        ("train", {"directory": "x", "demonstrations": "three"}),
        ("train", {"directory": ""}),
        ("train", {}),
    ],
)
def test_arguments_are_checked(split, options):
    with pytest.raises(ConfigError, match="vqa_rad"):
        load_source(SourceConfig("data_prep.sets.vqa_rad:source", split, options))
