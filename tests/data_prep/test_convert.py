"""Rows of verl and TRL become questions that are read, and built, as one's own."""

import json

import pyarrow
import pytest

from data_prep import convert
from data_prep.convert import convert as converted
from tests.kit.datasets import parquet, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from vitar_jax.data import questions
from vitar_jax.errors import DataError
from vitar_jax.processing.files import open_image

VERL = {
    "data_source": "med_box",
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>Which texture? A) flat B) rows"},
    ],
    "images": [{"bytes": picture(1), "path": "a.png"}],
    "reward_model": {"style": "rule", "ground_truth": "B"},
    "extra_info": {"split": "train", "index": 5, "answer": "no", "boxes": "[1]", "nested": [1]},
}
TRL = {
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which texture?"}]}],
    "image": {"bytes": picture(2, "JPEG"), "path": None},
    "solution": "<think>Rows.</think> <answer> rows </answer>",
}


def test_rows_of_verl(tmp_path, build_set):
    parquet(tmp_path / "train.parquet", [VERL, VERL | {"images": [], "prompt": [VERL["prompt"][1]]}])
    assert converted("verl", tmp_path / "train.parquet", tmp_path / "out") == 2
    first, second = questions.read(tmp_path / "out" / "questions.jsonl")
    assert first.question == "Which texture?" and (first.answer, first.options) == ("B", (("A", "flat"), ("B", "rows")))
    assert first.metadata == {"data_source": "med_box", "split": "train", "index": 5}
    assert open_image(first.images[0]).tobytes() == open_image(picture(1)).tobytes() and first.images[0].endswith(".png")
    assert (second.images, second.sample_id) == ((), "1")
    data_dir = build_set("own", tmp_path / "out" / "questions.jsonl")
    assert [sample.question for sample in read_back(data_dir, "own", "train")] == [first.question] * 2


def test_rows_of_trl(tmp_path):
    """Conversational or text, one image or several, embedded or files, a solution or an answer."""
    parquet(tmp_path / "train.parquet", [TRL])
    converted("trl", tmp_path / "train.parquet", tmp_path / "one")
    rows = [
        {"prompt": "<image>Which <image>grew?", "images": ["i/a.png", (tmp_path / "i" / "b.png").as_uri()], "answer": 2},
        {"prompt": [{"role": "user", "content": "What is a CT?"}], "solution": "an image"},
    ]
    table = "".join(json.dumps(row) + "\n" for row in rows)
    write_files(tmp_path, {"i/a.png": picture(1), "i/b.png": picture(2), "t.jsonl": table})
    converted("trl", tmp_path / "t.jsonl", tmp_path / "two")
    (first,) = questions.read(tmp_path / "one" / "questions.jsonl")
    second, third = questions.read(tmp_path / "two" / "questions.jsonl")
    assert (first.question, first.answer) == ("Which texture?", "rows")
    assert open_image(first.images[0]).tobytes() == open_image(picture(2, "JPEG")).tobytes()
    assert (second.question, second.answer, len(second.images)) == ("Which grew?", "2", 2)
    assert [open_image(path).tobytes() for path in second.images] == [open_image(picture(n)).tobytes() for n in (1, 2)]
    assert (third.question, third.answer, third.images) == ("What is a CT?", "an image", ())


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("verl", {"reward_model": {"style": "rule"}}, "reward_model.ground_truth is missing"),
        ("verl", {"reward_model": None}, "reward_model.ground_truth is missing"),
        ("verl", {"data_source": None}, "data_source is"),
        ("verl", {"prompt": [{"role": "system", "content": "x"}]}, "prompt: got .* from the user"),
        ("verl", {"prompt": "<image>"}, "prompt: got '<image>'"),
        ("verl", {"images": "a.png"}, "images: got 'a.png', expected a list"),
        ("verl", {"images": ["none.png"]}, "image 0: no such file: .*none.png"),
        ("verl", {"images": [3]}, r"image 0: expected an image as bytes or a path, got int"),
        ("trl", {}, "answer is missing"),
    ],
)
def test_what_is_wrong_is_named_and_leaves_nothing(tmp_path, kind, change, words):
    rows = [{**VERL, "images": []}, {**VERL, "images": [], **change}]
    source = write_files(tmp_path, {"t.jsonl": "".join(json.dumps(row) + "\n" for row in rows[kind == "trl" :])}) / "t.jsonl"
    with pytest.raises(DataError, match=f"t.jsonl:[12]: {words}"):
        converted(kind, source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_places_that_are_wrong_are_named(tmp_path, monkeypatch, capsys):
    parquet(tmp_path / "bad.parquet", [TRL | {"image": {"bytes": b"x", "path": None}}])
    with pytest.raises(DataError, match="bad.parquet, row 0: image 0: .*not an image"):
        converted("trl", tmp_path / "bad.parquet", tmp_path / "out")
    parquet(tmp_path / "none.parquet", [], pyarrow.schema([("prompt", pyarrow.string())]))
    for source, words in (("none.parquet", "no rows found"), ("t.csv", "unknown file type, expected .parquet or .jsonl")):
        with pytest.raises(DataError, match=words):
            converted("trl", tmp_path / source, tmp_path / "out")
    write_files(tmp_path, {"there/x": ""})
    monkeypatch.setattr("sys.argv", ["convert", "trl", f"--source={tmp_path}/t.jsonl", f"--output={tmp_path}/there"])
    with pytest.raises(SystemExit) as stopped:
        convert.main()
    assert stopped.value.code == 2 and capsys.readouterr().err == f"error: {tmp_path}/there: already exists\n"
