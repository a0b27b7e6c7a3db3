"""Every command of data_prep ends in one line on a path that is wrong."""

import importlib
from pathlib import Path

import pytest

import data_prep
from tests.kit.files import write_files
from tests.kit.images import picture

ROOT = Path(data_prep.__file__).parent


def commands() -> set[str]:
    """Returns the modules that `python -m` runs."""
    files = [file.relative_to(ROOT.parent).with_suffix("") for file in ROOT.rglob("*.py") if "__main__" in file.read_text()]
    return {".".join(file.parts).removesuffix(".__main__") for file in files}


# By module: the arguments, in which FILE is a file where a folder belongs, and NOWHERE does not exist.
WRONG: dict[str, list[str]] = {
    "data_prep.build": [
        "slake --source=NOWHERE --data_dir=NEW",
        "slake --source=FILE --data_dir=NEW",
        "own --source=NOWHERE/q.csv --data_dir=NEW",
        "own --source=NOWHERE.csv --data_dir=NEW",
        "own --source=GOOD/q.csv --data_dir=FILE",
        "own --source=GOOD/q.csv --data_dir=FILE/x",
        "own --source=GOOD/q.csv --images=NOWHERE --data_dir=NEW",
        "own --source=GOOD/q.csv --images=FILE --data_dir=NEW",
        "own --source=GOOD --data_dir=NEW",
    ],
    "data_prep.convert": [
        "trl --source=NOWHERE.jsonl --output=NEW",
        "trl --source=NOWHERE.parquet --output=NEW",
        "trl --source=FILE/x.jsonl --output=NEW",
        "trl --source=GOOD --output=NEW",
        "trl --source=GOOD/t.jsonl --output=FILE",
        "trl --source=GOOD/t.jsonl --output=FILE/x",
        "trl --source=GOOD/t.jsonl --output=FILE/x/y",
    ],
    "data_prep.curate": [
        "--format=coco --annotations=NOWHERE --images=GOOD --output=NEW",
        "--format=voc --annotations=NOWHERE --images=GOOD --output=NEW",
        "--format=yolo --annotations=NOWHERE --images=GOOD --classes=GOOD/q.csv --output=NEW",
        "--format=yolo --annotations=GOOD --images=GOOD --classes=NOWHERE --output=NEW",
        "--format=masks --annotations=NOWHERE --images=GOOD --classes=GOOD/q.csv --output=NEW",
    ],
    "data_prep.gaze": [
        "--set=slake --data_dir=NOWHERE --expert=annotations --output=NEW",
        "--set=NOWHERE.jsonl --expert=annotations --output=NEW",
        "--set=GOOD/q.csv --expert=NOWHERE.py:expert --output=NEW",
        "--set=GOOD/q.csv --expert=annotations --output=FILE",
        "--set=GOOD/q.csv --expert=annotations --output=FILE/x",
        "--set=GOOD/q.csv --expert=annotations --output=NEW",
    ],
    "data_prep.phantom": ["--output=FILE", "--output=FILE/x"],
    "data_prep.phantom.probe": ["--cache_dir=FILE", "--cache_dir=FILE/x"],
    "data_prep.sets.vqa_rad": ["--directory=NOWHERE", "--directory=FILE", "--directory=GOOD"],
}


def test_every_command_has_its_wrong_paths() -> None:
    assert commands() == WRONG.keys()


@pytest.mark.parametrize(("module", "arguments"), [(module, line) for module, lines in WRONG.items() for line in lines])
def test_a_wrong_path_is_one_line(
    module: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"GOOD/q.csv": "question\nIs it large?\n", "GOOD/t.jsonl": '{"prompt": "What?", "solution": "x"}\n', "FILE": "x"}
    write_files(tmp_path, good | {"GOOD/a.png": picture(1)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [module, *arguments.split()])
    package = (ROOT.parent / module.replace(".", "/")).is_dir()
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    assert any(word in lines[0] for word in ("NOWHERE", "FILE", "GOOD"))
