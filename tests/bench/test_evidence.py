"""The bench of interventions compares each with decoding, and a probe with interventions with one without."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.kit.errors import Main
from tests.kit.images import noise
from tests.kit.processes import ROOT
from vitar_jax.bench import __main__ as command_line
from vitar_jax.bench import evidence
from vitar_jax.bench.pairs import Pair, Row
from vitar_jax.data.interventions import INTERVENTIONS, find_change


@pytest.mark.usefixtures("short_timings")
def test_it_times_interventions_beside_decoding(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        noise(90, 70, seed=number).save(tmp_path / f"{number}.png")
    given = [f"--images={tmp_path}", "--rounds=2", f"--output={tmp_path / 'evidence.json'}"]
    assert main(command_line, "evidence", *given, commands=command_line.COMMANDS) == 0
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert [row["work"] for row in found["rows"]] == list(evidence.INTERVENTIONS)
    assert all(row["items"] == 2 and len(row["ours_seconds"]) == len(row["peer_seconds"]) == 2 for row in found["rows"])
    assert all(row["met"] == (row["ratio"] >= 1) for row in found["rows"])
    assert capsys.readouterr().out.count("at most 100%") == len(evidence.INTERVENTIONS)


def test_its_table_gives_the_time_of_an_image_and_its_share_of_decoding() -> None:
    pair = Pair("flip", "4 images", lambda: None, lambda: None, 1.0, items=4)
    slow, fast = Row(pair, (0.04, 0.08, 0.04), (0.02, 0.02, 0.02)), Row(pair, (0.01,), (0.04,))
    _, first, second = evidence.table([slow, fast]).splitlines()
    assert first.split() == "flip 10.0 ms 5.0 ms 200% (200% to 400%) at most 100% MISSED".split()
    assert second.split() == "flip 2.5 ms 10.0 ms 25% (25% to 25%) at most 100% met".split()


def test_it_times_every_intervention_that_needs_no_earlier_run() -> None:
    timed = {name.partition(":")[0] for name in evidence.INTERVENTIONS}
    assert timed == {name for name, found in INTERVENTIONS.items() if found.outlined != "always" and name != "erase_gold"}
    assert all(find_change(name) for name in evidence.INTERVENTIONS)


@pytest.mark.slow
def test_it_plays_a_probe_with_interventions_and_one_without(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (60, 50)).save(tmp_path / "image.png")
    given = [f"--images={tmp_path}", "--rounds=1", f"--config={ROOT}/tests/kit/micro.py", f"--output={tmp_path / 'e.json'}"]
    assert main(command_line, "evidence", *given, commands=command_line.COMMANDS) == 0
    probe = json.loads((tmp_path / "e.json").read_text())["probe"]
    assert probe["stage"] == "grpo" and probe["samples"] == 4
    # Images of the same sizes, and turns that end at their limit or before: about four times the tokens.
    assert 3 * probe["plain"]["tokens"] < probe["changed"]["tokens"] < 5 * probe["plain"]["tokens"]
    assert probe["plain"]["tokens"] > 4 * 20 and probe["plain"]["seconds"] > 0
    assert "A probe of 4 samples of stage grpo plays" in capsys.readouterr().out


def test_a_recipe_without_probes_is_an_error(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "tests" / "kit" / "micro.py").read_text()
    recipe = tmp_path / "recipe.py"
    text = text.replace("probe_every=2", "probe_every=0").replace("Path(__file__).parents[2]", f"Path({str(ROOT)!r})")
    recipe.write_text(text)
    assert main(command_line, "evidence", f"--config={recipe}", commands=command_line.COMMANDS) == 2
    assert "--config: no stage of the schedule has probes" in capsys.readouterr().err
