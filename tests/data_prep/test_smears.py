"""Questions about smears: pixels painted from the boxes say the same, balanced, and a box does not give the answer away."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.curation.candidates import part_box
from data_prep.phantom.tokenizer import MAX_IDS
from data_prep.smears import (
    ASKED,
    PAIRS,
    VIEW,
    WORDS,
    count_right,
    finding_right,
    look_box,
    part_right,
    save_tokenizer,
    source,
    what_looking_pays,
)
from tests.kit.bccd import COLOURS, SIDES, published
from tests.kit.recipes import load_config
from tests.kit.trajectories import make_trajectory
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError
from vitar_jax.processing.files import open_image, pixels_sha256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(published(tmp_path_factory.mktemp("smears") / "bccd"))


def cells(sample: Sample, name: str) -> np.ndarray:
    """Returns the pixels that have the colour of a class."""
    pixels = np.asarray(open_image(sample.images[0]).convert("RGB"), float)
    return np.abs(pixels - COLOURS[name]).max(-1) < 24  # JPEG is inexact


def number_in_part(sample: Sample) -> float:
    """Returns how many cells of the asked class, whole or cut, the part of the image shows, by their pixels."""
    pixels = cells(sample, sample.metadata["finding"])
    height, width = pixels.shape
    left, top, right, bottom = map(round, part_box(sample.metadata.get("part", ""), (width, height)).xyxy)
    return pixels[top:bottom, left:right].sum() / (np.pi / 4 * SIDES[sample.metadata["finding"]] ** 2)


def test_pixels_say_the_same(folder: str) -> None:
    samples = source("train", directory=folder)
    seen = Counter()
    for sample in (samples[n] for n in range(200)):
        kind = sample.metadata["kind"]
        seen[kind] += 1
        if kind == "part":
            assert (number_in_part(sample) > 0.6) == (sample.answer == "Yes"), sample
        if kind == "count":
            assert abs(number_in_part(sample) - int(sample.answer)) < 0.45, sample
        if kind == "finding":
            words = sample.question.replace("(", " ").replace(",", " ").replace(")", " ").split()
            x, y = (float(word) for word in words if word.count(".") == 1 and word[0].isdigit())
            height, width = cells(sample, "WBC").shape
            where = np.s_[int(y * height) - 1 : int(y * height) + 2, int(x * width) - 1 : int(x * width) + 2]
            assert cells(sample, sample.answer)[where].any(), sample
    assert min(seen.values()) > 40 and len(seen) == 3


def test_the_grid_is_that_of_the_view(folder: str) -> None:
    """A class that covers much of a cell of the grid, and hardly any of its neighbours, has its centre there."""
    samples = source("train", directory=folder, task="warmup")
    checked = 0
    for sample in (samples[n] for n in range(300)):
        assert open_image(sample.images[0]).size == VIEW and not sample.boxes and sample.demonstration is None
        if sample.metadata["kind"] == "where":
            shares = cells(sample, sample.metadata["finding"]).reshape(2, 28, 3, 28).sum((1, 3)).ravel()
            if shares.max() > 0.95 * shares.sum():
                assert [word == "yes" for word in sample.answer.split()] == [share == shares.max() for share in shares]
                checked += 1
    assert checked > 20


def test_answers_of_a_kind_are_equally_frequent(folder: str) -> None:
    samples = source("train", directory=folder)
    counts = Counter((samples[n].metadata["kind"], samples[n].answer) for n in range(600))
    for kind, answers in {"part": ("Yes", "No"), "finding": ASKED["finding"], "count": ("0", "1")}.items():
        some = [counts[kind, answer] for answer in answers]
        assert min(some) > 0.6 * max(some) and sum(some) > 140, counts


def test_held_out_samples_are_whole_smears_of_the_published_list(folder: str) -> None:
    samples = source("test", directory=folder)
    assert {Path(str(sample.images[0])).stem for sample in samples} <= {"smear_9", "smear_10", "smear_11"}
    assert len({sample.sample_id for sample in samples}) == len(samples) and not any(s.options for s in samples)
    counts = Counter((s.metadata["kind"], s.answer) for s in samples)
    assert counts["part", "Yes"] == counts["part", "No"] > 0 and len({counts["finding", c] for c in ASKED["finding"]}) == 1
    assert all((number_in_part(s) > 0.6) == (s.answer == "Yes") for s in samples if s.metadata["kind"] == "part")


def test_the_box_does_not_depend_on_the_answer(folder: str) -> None:
    samples = source("train", directory=folder)
    sizes: dict[str, set] = {}
    for sample in (samples[n] for n in range(200)):
        (box,), image = sample.boxes, open_image(sample.images[0])
        assert sample.demonstration is not None and sample.demonstration.looks[0].regions == (box,)
        edges = [edge / side * view for edge, side, view in zip(box.xyxy, image.size * 2, VIEW * 2, strict=True)]
        assert np.allclose(edges, np.round(edges)) and 0 <= min(edges)  # whole pixels of the first view
        if sample.metadata["kind"] == "finding":
            sizes.setdefault(sample.answer, set()).add((round(edges[2] - edges[0]), round(edges[3] - edges[1])))
    assert set(map(tuple, sizes.values())) == {((32, 21),)}
    assert look_box((0, 479), (640, 480)).xyxy == pytest.approx((0, 300, 32 / 84 * 640, 480))


def test_items_depend_on_their_number_and_the_seed(folder: str) -> None:
    first, second = source("train", directory=folder), source("train", directory=folder, seed=1)
    one, same = first[7], first[7]
    assert one.question == same.question
    assert pixels_sha256(open_image(one.images[0])) == pixels_sha256(open_image(same.images[0]))
    assert any(first[n].answer != second[n].answer for n in range(20)) and "smear_" not in repr(first)


def test_a_class_that_no_smear_shows_is_named(tmp_path: Path) -> None:
    changes = {f"Annotations/smear_{n}.xml": ("Platelets", "RBC") for n in range(12)}
    folder = published(tmp_path / "bccd", changes)
    for file in (folder / "Annotations").iterdir():
        file.write_text(file.read_text().replace("Platelets", "RBC"))
    samples = source("train", directory=str(folder))
    with pytest.raises(DataError, match="smear-look-0-.*: Platelets: no window"):
        [samples[n] for n in range(30)]


def test_questions_are_few_tokens(folder: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) <= MAX_IDS and all(len(tokenizer.tokenize(f" {word}")) == 1 for word in WORDS)
    samples = source("train", directory=folder)
    for sample in (samples[n] for n in range(60)):
        assert len(tokenizer.tokenize(sample.question)) <= 16 and tokenizer.decode(tokenizer(sample.question).input_ids)


@pytest.mark.slow
def test_the_recipe_states_what_a_prior_reaches(test_data: Path) -> None:
    counts: dict[str, Counter[str]] = {}
    samples = source("test", directory=str(test_data / "bccd"))
    for sample in samples:
        counts.setdefault(sample.metadata["kind"], Counter())[sample.answer] += 1
    best = sum(max(answers.values()) for answers in counts.values())
    assert best / len(samples) == pytest.approx(load_config("quickstart_cells").proof.chance, abs=5e-4)


def test_measures_are_of_their_kind() -> None:
    right = make_trajectory(metadata={"kind": "part"})
    right = dataclasses.replace(right, predicted_answer="yes", answer="Yes", answers=())
    assert (part_right(right), finding_right(right), count_right(right)) == (1, None, None)
    assert part_right(dataclasses.replace(right, predicted_answer=None)) == 0


def test_a_lead_counts_beyond_the_intervals() -> None:
    rows = {name: {"accuracy": 0.5, "interval": [0.45, 0.55]} for pair in PAIRS.values() for name in pair}
    rows["oracle_box"] = {"accuracy": 0.7, "interval": [0.65, 0.75]}
    rows["two_looks_grpo"] = {"accuracy": 0.6, "interval": [0.54, 0.66]}
    first, second, third = what_looking_pays(rows).splitlines()
    assert "+0.0 points (not more" in first and "GRPO over one: +10.0 points (not more" in second
    assert third == "Lead of the box from the truth over a random one: +20.0 points (more than the intervals)."
