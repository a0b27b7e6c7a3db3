"""Means over trajectories, by plain numpy and scipy, and the table that is made of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from vitar_jax.errors import DataError
from vitar_jax.evaluation.attention_summary import summarise, table

LAYERS, HEADS = 2, 3


def numbers(rng: np.random.Generator) -> list[list[float | None]]:
    return rng.uniform(size=(LAYERS, HEADS)).tolist()


def image(rng: np.random.Generator, *, edited: bool = False, box: str = "") -> dict[str, Any]:
    names = ("mass", "enrichment", "pointing", "random_enrichment", "random_pointing")
    boxes = {box: {name: numbers(rng) for name in names}} if box else {}
    return {"edited": edited, "share": numbers(rng), "same_length_text": numbers(rng), "boxes": boxes}


def turn(number: int, rng: np.random.Generator, *images: dict[str, Any], of: str = "") -> dict[str, Any]:
    """A record of an image of its own, unless it says which."""
    return {"turn": number, "text": numbers(rng), "images": list(images), "clusters": {"image": of or f"{rng.random()}"}}


def records() -> list[dict[str, Any]]:
    """Five trajectories of two turns, one of one, and one of three, whose last counts for nothing."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(5):
        found.append(turn(1, rng, image(rng, box="gold")))
        found.append(turn(2, rng, image(rng, box="gold"), image(rng, edited=True, box="gold")))
    found.append(turn(1, rng, image(rng)))
    found += [turn(1, rng, image(rng)), turn(2, rng, image(rng)), turn(3, rng, image(rng), image(rng, edited=True))]
    return found


def check(cell: dict[str, Any], values: list[Any]) -> None:
    each = np.array(values, float).mean(axis=(1, 2))
    assert cell["n"] == len(values) and cell["mean"] == pytest.approx(each.mean())
    low, high = cell["interval"]
    theirs = ttest_1samp(each, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.02 * (high - low) + 0.01)
    assert cell["layers"] == pytest.approx(np.array(values, float).mean(axis=(0, 2)).tolist())


def test_means_of_rounds_and_their_difference() -> None:
    made = records()
    found = summarise(iter(made))
    first, second = ([record for record in made if record["turn"] == n] for n in (1, 2))
    check(found["original/share"]["think"], [record["images"][0]["share"] for record in first])
    check(found["original/share"]["rethink"], [record["images"][0]["share"] for record in second])
    check(found["edited/gold/pointing"]["rethink"], [r["images"][1]["boxes"]["gold"]["pointing"] for r in second[:5]])
    pairs = zip(first[:5], second[:5], strict=True)
    of_box = [[np.array(r["images"][0]["boxes"]["gold"]["enrichment"]) for r in pair] for pair in pairs]
    check(found["original/gold/enrichment"]["difference"], [after - before for before, after in of_box])
    assert found["original/share"]["difference"]["n"] == 6 and found["text/share"]["think"]["n"] == 7
    assert "think" not in found["edited/share"] and "difference" not in found["edited/share"]


def test_images_of_a_kind_are_one() -> None:
    """Shares add up, boxes count alike."""
    rng = np.random.default_rng(1)
    images = [image(rng, box="model"), image(rng, box="model"), image(rng), image(rng, edited=True)]
    found = summarise([turn(1, rng, *images)])
    shares = [np.mean(i["share"]) for i in images]
    assert found["original/share"]["think"]["mean"] == pytest.approx(sum(shares[:3]))
    assert found["all images/share"]["think"]["mean"] == pytest.approx(sum(shares))
    masses = [np.mean(i["boxes"]["model"]["mass"]) for i in images[:2]]
    assert found["original/model/mass"]["think"]["mean"] == pytest.approx(np.mean(masses))
    assert found["original/share"]["think"]["interval"] is None


def test_what_is_missing_is_left_out() -> None:
    """A head, a layer, or all."""
    rng = np.random.default_rng(2)
    some, none = turn(1, rng, image(rng)), turn(1, rng, image(rng))
    some["images"][0]["share"] = [[None, 0.1, 0.3], [None, None, None]]
    none["images"][0]["share"] = [[None] * HEADS] * LAYERS
    found = summarise([some, none])
    cell = found["original/share"]["think"]
    assert cell == {"mean": pytest.approx(0.2), "interval": None, "n": 1, "clusters": 1, "layers": [pytest.approx(0.2), None]}
    assert found["text/share"]["think"]["n"] == 2
    none["images"] = []
    assert "original/share" not in summarise([none])


def test_intervals_count_images_or_patients() -> None:
    """The same ten trajectories of two images are as few as two; of as many patients, they are ten again."""
    rng = np.random.default_rng(3)
    each = [turn(1, rng, image(rng), of="ab"[i % 2]) for i in range(10)]
    apart = [record | {"clusters": {"image": str(i)}} for i, record in enumerate(each)]
    patients = [record | {"clusters": record["clusters"] | {"patient": str(i)}} for i, record in enumerate(each)]
    two, ten = (summarise(records)["original/share"]["think"]["interval"] for records in (each, apart))
    assert two[1] - two[0] > 2 * (ten[1] - ten[0])
    assert summarise(patients)["original/share"]["think"]["interval"] == ten
    patients[0] = each[0]  # one image has no patient
    assert summarise(patients)["original/share"]["think"]["interval"] == two


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_no_share_leaves_its_limits(shares: list[tuple[float, float]]) -> None:
    made = []
    for number, pair in enumerate(shares):
        for at, share in enumerate(pair, start=1):
            one = {"edited": False, "share": [[share]], "same_length_text": [[share]], "boxes": {}}
            made.append({"turn": at, "text": [[1 - share]], "images": [one], "clusters": {"image": str(number)}})
    for by_turn in summarise(made).values():
        for which, cell in by_turn.items():
            low, high = cell["interval"]
            assert (-1 if which == "difference" else 0) <= low <= cell["mean"] + 1e-12
            assert cell["mean"] - 1e-12 <= high <= 1


def test_nothing_to_summarise() -> None:
    with pytest.raises(DataError, match="no turns"):
        summarise([])


def test_the_table() -> None:
    *lines, blank, note = table(summarise(records())).splitlines()
    assert lines[0] == "| | think | rethink | rethink - think |" and len({line.count("|") for line in lines}) == 1
    rows = {line.split("|")[1].strip(): line.split("|")[2:5] for line in lines[2:]}
    assert not blank and note.startswith("\\* of fewer than 20 images")
    assert [cell.strip().endswith(")*") for cell in rows["attention on the original image"]] == [False, False, True]
    assert rows["enrichment in the gold box on the original image"][0].strip().endswith(")*")
    rng = np.random.default_rng(0)
    assert "*" not in table(summarise([turn(1, rng, image(rng, box="gold")) for _ in range(20)]))
    assert rows["attention on the edited image"][0].strip() == rows["attention on the edited image"][2].strip() == ""
    assert " % (" in rows["attention on all images"][1] and "%" not in rows["enrichment in the gold box on the edited image"][1]
    assert not any("model's" in name for name in rows)
