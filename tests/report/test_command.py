"""`python -m vitar_jax.report`: opens any mix of files, and says what it could not read."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.evaluation.test_report import read_episodes
from tests.kit.errors import Main, check_error
from tests.kit.images import noise
from tests.kit.trajectories import make_trajectory
from tests.report.test_readers import TRL, VERL
from vitar_jax.episodes.trajectory_files import TrajectoryWriter
from vitar_jax.report import __main__ as report


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with a form in each subfolder, each under a name that says nothing, and what is of no form."""
    folder = tmp_path / "mixed"
    (folder / "ours").mkdir(parents=True)
    TrajectoryWriter(folder / "ours").write([make_trajectory(), make_trajectory(1)])
    (folder / "verl").mkdir()
    lines = [json.dumps(VERL | {"step": 7}), '{"input": "cut', json.dumps(VERL | {"step": "x"}), json.dumps({"loss": 1})]
    (folder / "verl" / "log.txt").write_text("\n".join(lines))
    (folder / "trl").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([TRL, TRL]), folder / "trl" / "data")
    (folder / "model.pt").write_bytes(b"PK\x03\x04rest")
    (folder / "notes.md").write_text("# notes")
    return folder


def test_files_of_any_form_open_and_the_rest_is_named(mixed: Path, tmp_path: Path, main: Main, capsys) -> None:
    output = tmp_path / "out"
    assert main(report, f"--input={mixed}", f"--output={output}") == 0
    said = capsys.readouterr().out
    assert "read: 5 trajectories (vitar_jax 2, trl 2, verl 1)" in said and "not read: 4" in said and "1 .md" in said
    unread = (output / "not_read.txt").read_text()
    for part in ("log.txt:2: is damaged", "log.txt:3: ValueError", "no known form (the first has loss)", "pt: is a pickle"):
        assert part in unread and part in said
    rows = [row for row, _ in read_episodes(output)]
    assert sorted((row["section"], row["protocol"]) for row in rows) == [
        ("ours", "vitar"),
        ("ours", "vitar"),
        ("trl", "trl"),
        ("trl", "trl"),
        ("verl", "verl"),
    ]
    scores = {row["key"]: row["correct"] for row in rows}
    assert scores["verl/log-0/0"] == 0.0 and scores["trl/data-0/0"] == 1.0 and scores["ours/phantom-0/0"] == 1.0
    frames = [image for _, episode in read_episodes(output) if episode["protocol"] == "verl" for image in episode["images"]]
    assert [(image["unrecorded"], image["file"]) for image in frames] == [(True, None)]


def test_images_appear_only_if_asked_for(mixed: Path, tmp_path: Path, main: Main) -> None:
    for images in (False, True):
        output = tmp_path / f"out{images}"
        flags = ["--show_images"] if images else []
        assert main(report, f"--input={mixed / 'ours'}", f"--output={output}", *flags) == 0
        assert any((output / "images").iterdir()) is images


def test_documents_open_as_the_records_that_they_were_made_of(mixed: Path, tmp_path: Path, main: Main) -> None:
    documents, first, second = tmp_path / "atif", tmp_path / "first", tmp_path / "second"
    assert main(report, f"--input={mixed}", f"--output={documents}", "--format=atif", "--show_images") == 0
    assert main(report, f"--input={mixed}", f"--output={first}", "--show_images") == 0
    assert main(report, f"--input={documents}", f"--output={second}", "--show_images") == 0
    direct, back = ([episode for _, episode in read_episodes(folder)] for folder in (first, second))
    assert len(back) == 5 and sorted(map(str, back)) == sorted(map(str, direct))


def test_what_a_user_gets_wrong_is_one_line(tmp_path: Path, main: Main, capsys) -> None:
    noise(9, 9).save(tmp_path / "only.png")
    for flags, part in (
        ([], "expected --input=FILE_OR_DIR and --output=DIR"),
        ([f"--input={tmp_path / 'gone'}", f"--output={tmp_path / 'out'}"], "no such file or folder"),
        ([f"--input={tmp_path}", f"--output={tmp_path}"], "contains --input"),
        ([f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--protocol=zooom"], "unknown protocol 'zooom'"),
    ):
        assert main(report, *flags) == 2
        check_error(capsys.readouterr().err, part)
    assert main(report, f"--input={tmp_path}", f"--output={tmp_path / 'out'}") == 2
    assert "no trajectory could be read" in capsys.readouterr().err
