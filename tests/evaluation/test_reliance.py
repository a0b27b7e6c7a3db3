"""Reliance, against counts by hand and intervals of `statistics`."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitar_jax.evaluation.reliance import Pair, reliance, reliance_lines, reliance_of
from vitar_jax.evaluation.results import VERDICTS
from vitar_jax.evaluation.statistics import difference_interval, score_interval


def test_the_four_numbers_by_hand() -> None:
    """Of five answers, three are right on the real images, two of them also under the control; spelling changes nothing."""
    pairs = [
        Pair("a", 1, 1, "Left lung", "left_lung"),
        Pair("a", 1, 0, "left", "right"),
        Pair("b", 0, 1, "none", "left"),
        Pair("b", 1, 1, "left", "left"),
        Pair("c", 0.5, 0, "", ""),
    ]
    found = reliance(pairs)
    assert {name: (share["value"], share["n"]) for name, share in found.items()} == {
        "added": (pytest.approx(0.1), 5),
        "changed": (pytest.approx(0.4), 5),
        "stay_right": (pytest.approx(2 / 3), 3),
        "turn_wrong": (pytest.approx(1 / 3), 3),
    }
    of_all, of_right = ["a", "a", "b", "b", "c"], ["a", "a", "b"]
    assert tuple(found["added"]["interval"]) == difference_interval([0, 1, -1, 0, 0.5], of_all)
    assert tuple(found["changed"]["interval"]) == score_interval([0, 1, 1, 0, 0], of_all)
    assert tuple(found["stay_right"]["interval"]) == score_interval([1, 0, 1], of_right)


@pytest.mark.parametrize("control, named", [("wrong_image", True), ("blank", False)])
def test_beyond_accuracy_names_what_a_wrong_image_changes(tmp_path: Path, control: str, named: bool) -> None:
    """Accuracy on real minus on mismatched images, and the share of answers that change: 2 of 4 against 1 of 4, and 3 of 4."""
    for name, answers, settings in (("real", "AABB", {}), ("other", "BBAB", {"control": control})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps({"control": settings}))
        lines = [
            {"sample_id": n, "cluster": str(n), "rules": {"exact/1": {"correct": float(said == "A" and n < 3), "parsed": said}}}
            for n, said in enumerate(answers)
        ]
        (folder / VERDICTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = reliance_of(tmp_path / "real", tmp_path / "other")
    assert found is not None and ("vrs" in found) == ("Visual Reliance Score" in reliance_lines(found)) == named
    if named:
        assert found["vrs"]["value"] == pytest.approx(2 / 4 - 1 / 4) and found["image_sensitivity"]["value"] == 3 / 4


def test_a_run_beside_itself_relies_on_nothing() -> None:
    rng = np.random.default_rng(0)
    pairs = [Pair(str(n // 2), right, right, "x", "x") for n, right in enumerate(rng.integers(0, 2, 40).astype(float))]
    found = reliance(pairs)
    assert (found["added"]["value"], found["changed"]["value"], found["stay_right"]["value"]) == (0, 0, 1)
    low, high = found["added"]["interval"]
    assert low < 0 < high


def test_without_answers_there_is_no_number() -> None:
    assert {(share["value"], share["interval"], share["n"]) for share in reliance([]).values()} == {(None, None, 0)}
    nothing_right = reliance([Pair("a", 0, 0), Pair("b", 0, 1)])
    assert nothing_right["stay_right"]["value"] is None and nothing_right["added"]["value"] == -0.5
