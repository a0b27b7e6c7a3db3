"""Invalid records of published sets and of other trainers' rows: all are reported at once, and can be left out."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data_prep import convert
from data_prep.reading.bad_records import BadRecords
from data_prep.reading.published import Published
from data_prep.sets import path_vqa, pmc_vqa, vitar_1k, vitar_16k, vitar_eval, vqa_rad
from tests.kit.datasets import card, parquet, read_back
from tests.kit.files import write_files
from tests.kit.images import picture
from tests.kit.slake import RECORD, published
from vitar_jax.data import questions
from vitar_jax.errors import DataError

WORDS = [
    "train.json, record 0: got a int, expected an object",
    "train.json, record 2: q_lang: got 'fr'",
    "train.json, record 3: no such image: none.jpg",
    "train.json, record 4: duplicate id slake-1, first at .*record 1",
    "test.json, record 0: image broken.jpg: not an image",
]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """SLAKE with two valid records and five invalid ones, found by the file, the reader and the build."""
    changes: list[Any] = [7, {}, {"q_lang": "fr"}, {"img_name": "none.jpg"}, {"qid": 1}]
    train = [change if change == 7 else RECORD | {"qid": n} | change for n, change in enumerate(changes)]
    last = [RECORD | {"qid": 8, "img_name": "broken.jpg"}, RECORD | {"qid": 9}]
    tables = {"train.json": json.dumps(train), "validate.json": "[]", "test.json": json.dumps(last)}
    return write_files(published(tmp_path / "slake"), {**tables, "imgs/broken.jpg": b"no picture"})


def test_all_bad_records_are_listed_at_once(
    mixed: Path, build_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_set("slake", mixed)
    *listed, summary = [line for line in capsys.readouterr().err.splitlines() if str(mixed) in line or "error" in line]
    assert stopped.value.code == 2 and len(listed) == len(WORDS)
    for words in WORDS:
        assert any(re.search(words, line) for line in listed), words
    assert summary == "error: slake: 5 of 7 records are invalid; mend them, or leave them out with --skip_bad"
    assert list((tmp_path / "built").iterdir()) == []


def test_bad_records_can_be_left_out(mixed: Path, build_set: Callable[..., Path]) -> None:
    data_dir = build_set("slake", mixed, "--skip_bad")
    ids = [sample.sample_id for split in ("train_en", "test_en") for sample in read_back(data_dir, "slake", split)]
    assert ids == ["slake-1", "slake-9"]
    assert "5 invalid records were left out." in card(data_dir, "slake")["notes"]


def test_a_split_of_bad_records_alone_is_an_error(
    build_set: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_files(published(tmp_path / "slake"), {"imgs/xmlab1/source.jpg": b"no picture"})
    for flags, words in (((), "records are invalid; mend them"), (("--skip_bad",), "split train_en: no questions found")):
        with pytest.raises(SystemExit):
            build_set("slake", source, *flags)
        assert words in capsys.readouterr().err.splitlines()[-1]


def write_pmc_vqa(folder: Path) -> None:
    head = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
    rows = "a.png,,x,x,y,z,w,A\na.png,Which?,x,x,y,z,w,A\n\na.png,Which?,x,x,y,z,w,A,too many\na.png,Where?,x,x,y,z,w,B\n"
    write_files(folder, {"train.csv": head + rows, "images/a.png": picture(1)})


def write_vitar_1k(folder: Path) -> None:
    look = {"thought": "A spot.", "actions": [{"name": "mark", "arguments": {"box": [[10, 20, 40, 50]]}}]}
    end = {"thought": "Rows.", "actions": [{"name": "Terminate", "arguments": {"answer": "B"}}]}
    row = {"image": "a.png", "question": "Which?", "options": ["flat", "rows"], "turns": [look, end]}
    rows = [json.dumps(row | {"turns": [look]}), json.dumps(row), "{", json.dumps(row)]
    write_files(folder, {"train.jsonl": "\n".join(rows), "images/a.png": picture(1, size=(64, 64))})


def write_vitar_eval(folder: Path) -> None:
    row = {"question": "Which?", "image": ["a.png"], "options": ["x", "y"], "answer": "x", "dataset": "d"}
    rows = [row | {"answer": "z"}, row, 7, row]
    write_files(folder, {vitar_eval.QUESTIONS: json.dumps(rows), "images/a.png": picture(1)})


def write_path_vqa(folder: Path) -> None:
    row = {"image": {"bytes": picture(1)}, "question": "Which?", "answer": "x"}
    for split in ("train", "validation", "test"):
        parquet(folder / "data" / f"{split}-0.parquet", [row | {"question": None}, row])
        parquet(folder / "data" / f"{split}-1.parquet", [row | {"answer": " "}, row])


def write_vitar_16k(folder: Path) -> None:
    row = {"image": {"bytes": picture(1)}, "question": "Which?", "answer": "x", "bbox": [[0.1, 0.2, 0.3, 0.4]]}
    wrong = row | {"bbox": [[0.1, 0.2, 1.3, 0.4]]}
    for number in range(2):
        parquet(folder / f"train-{number}.parquet", [wrong, row])


def write_vqa_rad(folder: Path) -> None:
    row = {"image_name": "a.png", "answer": "x", "phrase_type": "freeform", "answer_type": "OPEN", "question_type": "COUNT"}
    rows = [row | {"qid": n, "question": f"{n}?", "image_organ": "CHEST"} for n in range(4)]
    rows[0]["image_name"] = "b.png"
    files = {vqa_rad.QUESTIONS: json.dumps([*rows[:2], rows[2] | {"qid": 1}, rows[3]]), "images/a.png": picture(1)}
    write_files(folder, files)


@pytest.mark.parametrize(
    "module, write, prefix",
    [
        (pmc_vqa, write_pmc_vqa, "pmc-vqa-train-"),
        (vitar_1k, write_vitar_1k, "vitar-1k-"),
        (vitar_eval, write_vitar_eval, "vitar-eval-"),
        (path_vqa, write_path_vqa, "path-vqa-train-"),
        (vitar_16k, write_vitar_16k, "vitar-16k-"),
        (vqa_rad, write_vqa_rad, "vqa-rad-"),
    ],
)
def test_the_other_records_keep_their_ids(
    module: ModuleType, write: Callable[[Path], None], prefix: str, tmp_path: Path
) -> None:
    """The first and third of four records are invalid. An id with a number counts them, so mending them leaves it as it is."""
    write(tmp_path)
    bad: list[DataError] = []
    split, records = next(iter(module.read(Published(tmp_path, bad)).items()))
    assert split in ("train", "test") and [record.sample.sample_id for record in records] == [f"{prefix}1", f"{prefix}3"]
    assert len(bad) == 2
    with pytest.raises(DataError) as caught:
        list(next(iter(module.read(Published(tmp_path)).values())))
    assert str(caught.value) == str(bad[0])


def test_rows_of_other_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"prompt": "Which?", "image": "a.png", "answer": "x"}
    rows = [json.dumps(row) for row in (good, {**good, "image": "none.png"}, {**good, "answer": None}, good)]
    source = write_files(tmp_path, {"a.png": picture(1), "t.jsonl": "\n".join([*rows[:2], "", "{", *rows[2:]])}) / "t.jsonl"
    output = tmp_path / "out"
    words = ["t.jsonl:2: image 0: no such file", "t.jsonl:4: invalid JSON", "t.jsonl:5: answer is missing"]

    def run(*flags: str) -> list[str]:
        monkeypatch.setattr("sys.argv", ["convert", "trl", f"--source={source}", f"--output={output}", *flags])
        convert.main()
        return capsys.readouterr().err.splitlines()

    with pytest.raises(SystemExit):
        run()
    *listed, summary = capsys.readouterr().err.splitlines()
    assert len(listed) == 3 and all(word in line for word, line in zip(words, listed, strict=True))
    assert "3 of 5 records are invalid" in summary and not output.exists()
    assert run("--skip_bad") == listed
    assert [sample.sample_id for sample in questions.read(output / "questions.jsonl")] == ["0", "4"]
    assert sorted(path.name for path in (output / "images").iterdir()) == ["0-0.png", "4-0.png"]


def test_rows_that_are_all_bad(tmp_path: Path) -> None:
    source = write_files(tmp_path, {"t.jsonl": "{}\n[]\n"}) / "t.jsonl"
    with pytest.raises(BadRecords, match="2 of 2 records") as caught:
        convert.convert("trl", source, tmp_path / "out", bad=[])
    assert len(caught.value.errors) == 2
    with pytest.raises(DataError, match="t.jsonl: no valid rows found"):
        convert.convert("trl", source, tmp_path / "out", bad=[], skip_bad=True)
