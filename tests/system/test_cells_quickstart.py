"""The shortened quickstart runs on the published blood smears, from weights that know nothing to a table; wrong folders."""

import json

import pytest

from tests.kit.bccd import published
from tests.kit.processes import ROOT
from vitar_jax import quickstart
from vitar_jax.episodes.trajectory_files import read_trajectories

ROWS = ("one_look", "two_looks_sft", "two_looks_grpo", "random_box", "oracle_box", "blank", "region_erased")
CONFIG = f"--config={ROOT}/configs/quickstart_cells_smoke.py"


@pytest.mark.slow
def test_the_proof_runs_from_start_to_end(main, capsys, test_data, tmp_path) -> None:
    assert main(quickstart, CONFIG, f"--config.data.source={test_data / 'bccd'}", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["conclusion"].count("Lead of ") == 3 and found["conclusion"] in capsys.readouterr().out
    assert tuple(found["rows"]) == ROWS and {row["n"] for row in found["rows"].values()} == {8}
    assert all(0 <= row["interval"][0] <= row["accuracy"] <= row["interval"][1] <= 1 for row in found["rows"].values())
    assert found["rows"]["oracle_box"]["iou"] == pytest.approx(1, abs=0.1) and found["rows"]["random_box"]["iou"] < 0.9
    for record in read_trajectories(tmp_path / "evaluation" / "oracle_box"):
        assert len(record.images) == 2 and record.turns[0].carried_out  # a look was written, and its view added


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "config.data.source: must be set"),
        ("nowhere", "nowhere: no such folder"),
        ("damaged", "smear_3.xml: cannot be read as XML"),
        ("incomplete", "no ImageSets/Main/test.txt found"),
    ],
)
def test_a_wrong_folder_is_one_line(main, capsys, tmp_path, source, words) -> None:
    published(tmp_path / "damaged", {"Annotations/smear_3.xml": "<annotation>"})
    (published(tmp_path / "incomplete") / "ImageSets/Main/test.txt").unlink()
    given = tmp_path / source if source else ""
    assert main(quickstart, CONFIG, f"--config.data.source={given}", f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and not (tmp_path / "run").exists()
