"""Searches with the expert `annotations`, its rates of error, and the kept answers."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from PIL import Image

from data_prep.gaze.annotated import Annotated, Rates
from data_prep.gaze.answers import Answers
from data_prep.gaze.navigator import Rules
from data_prep.gaze.regions import Expert, Finding, ScoredBox
from data_prep.gaze.sampler import Sampler
from data_prep.gaze.search import Settings, searches
from tests.kit.images import noise
from vitar_jax.data.traces import Trace, check_trace
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import DataError, ImageError

PICTURE = noise(400, 300, "L")
GOLD, OTHER = Box(40, 40, 110, 110, "original"), (200.0, 150.0, 290.0, 250.0)
OPTIONS = (("A", "flat"), ("B", "rows"), ("C", "spots"), ("D", "grid"))


def sample(name: str = "a", **changes: Any) -> Sample:
    made = Sample(name, "Which texture?", (PICTURE,), "B", OPTIONS, (GOLD,), {"other_boxes": [list(OTHER)]})
    return replace(made, **changes)


def test_an_expert_without_errors_finds_the_answer() -> None:
    made = searches(sample(), Annotated(sample()))
    assert [trace.search for trace in made] == [*range(6)]
    for trace in made:
        assert trace.right and trace.answer == "B" and trace.end == "confident"
        assert [step.mode for step in trace.steps][0] == "scan" and trace.looks[-1].box == GOLD
        assert trace.looks[-1].after == 0.95
        check_trace(trace, PICTURE, "")
    # One region of two is always kept, so that six searches are one (see the sampler).
    assert len({trace.steps for trace in made}) == 1
    wide = Settings(Rules(sampler=Sampler(nucleus="top_p", temperature=0.5)), searches=12)
    assert {len(trace.looks) for trace in searches(sample(), Annotated(sample()), wide)} == {1, 2}


def test_searches_depend_on_their_arguments_alone() -> None:
    wide = Settings(Rules(sampler=Sampler(nucleus="top_p")), searches=4)
    many = {"other_boxes": [[100.0 * n, 200, 100.0 * n + 60, 260] for n in range(4)]}
    expert = Annotated(sample(metadata=many))
    first = searches(sample(metadata=many), expert, wide, 3)
    assert searches(sample(metadata=many), expert, wide, 3, image=PICTURE, answers=Answers()) == first
    assert first == searches(sample(metadata=many), expert, replace(wide, searches=9), 3)[:4]
    assert len({trace.steps for trace in first}) > 1
    assert searches(sample(metadata=many), expert, wide, 4) != first


@pytest.mark.parametrize("navigator, modes", [("scan", {"scan"}), ("drill", {"drill"}), ("random", {"drill"})])
def test_ablations_make_looks(navigator: Any, modes: set[str]) -> None:
    for trace in searches(sample(), Annotated(sample()), Settings(Rules(navigator=navigator))):
        assert {step.mode for step in trace.looks} == modes and 1 <= len(trace.looks) <= 4


def play(rates: Rates, seed: int, **changes: Any) -> list[Trace]:
    asked = [sample(str(number), **changes) for number in range(400)]
    one = Settings(Rules(sampler=Sampler(nucleus="top_p")), searches=1)
    return [searches(one_of, Annotated(one_of, rates, seed), one, image=PICTURE)[0] for one_of in asked]


def likely(count: int, of: int, rate: float) -> bool:
    return bool(scipy.stats.binomtest(count, of, rate).pvalue > 0.001)


def test_errors_have_their_rates() -> None:
    missed = play(Rates(misses=0.3), 1)
    seen = [any(step.box == GOLD for step in trace.looks) for trace in missed]
    assert likely(sum(seen), 400, 0.7)
    assert all(trace.right for trace, found in zip(missed, seen, strict=True) if found)
    guessed = Counter(trace.answer for trace, found in zip(missed, seen, strict=True) if not found)
    assert guessed.keys() == dict(OPTIONS).keys() and likely(guessed["B"], guessed.total(), 0.25)

    wrong = Counter(trace.answer for trace in play(Rates(wrong_answers=0.2), 2))
    assert likely(wrong["B"], 400, 0.8) and wrong.keys() == dict(OPTIONS).keys()

    false = play(Rates(false_regions=1.0), 3, metadata={})
    assert all(trace.right for trace in false)
    assert likely(sum(len(trace.looks) == 2 for trace in false), 400, 0.5)  # the false region first, or the right one
    # A box that overlaps the right one by more than half is taken for it, so a few have one look.


def test_what_is_not_found_is_guessed() -> None:
    open_question = {"options": (), "answer": "pleural effusion"}
    assert {trace.answer for trace in play(Rates(misses=1.0), 0, **open_question)} == {"unclear"}
    yes_no = play(Rates(misses=1.0), 0, options=(), answer="Yes")
    assert likely(sum(trace.right for trace in yes_no), 400, 0.5) and {trace.end for trace in yes_no} == {"none_found"}
    assert {trace.answer for trace in play(Rates(wrong_answers=1.0), 0, options=(), answer="Yes")} == {"no"}
    boxless = play(Rates(misses=1.0), 0, boxes=(), metadata={})
    assert all(trace.right and not trace.looks for trace in boxless)


def test_the_first_view_does_not_tell_the_right_box() -> None:
    first = [
        Annotated(one).scan(PICTURE)[0].box == GOLD
        for one in (sample(str(number)) for number in range(400))
    ]
    higher = [
        max(Annotated(one).scan(PICTURE), key=lambda found: found.confidence).box == GOLD
        for one in (sample(str(number)) for number in range(400))
    ]
    assert likely(sum(first), 400, 0.5) and likely(sum(higher), 400, 0.5)


def test_names_stand_in_the_sentences() -> None:
    expert = Annotated(sample(), names=("rows", "flat"), shows="shows {name}", shows_other="shows {name}")
    assert expert.drill(PICTURE, GOLD).sentence == "shows rows"
    assert expert.drill(PICTURE, Box(*OTHER, frame="original")) == Finding(0.05, "shows flat")
    assert expert.drill(PICTURE, Box(300, 10, 390, 90, "original")).sentence == "It shows nothing abnormal."
    with pytest.raises(DataError, match="sample a: got 1 names, expected one per box: 2"):
        Annotated(sample(), names=("rows",)).drill(PICTURE, GOLD)


def test_thin_boxes_are_widened_and_what_is_outside_is_refused() -> None:
    thin = sample(boxes=(Box(100, 100, 101, 102, "original"),), metadata={})
    (look,) = searches(thin, Annotated(thin), Settings(searches=1))[0].looks
    assert look.box and min(look.box.width, look.box.height) >= 28
    outside = sample(boxes=(Box(0, 0, 401, 10, "original"),))
    for wrong in (outside, sample(metadata={"other_boxes": [[0, 0, 1]]})):
        with pytest.raises(DataError, match="sample a: (other_)?boxes: got"):
            searches(wrong, Annotated(wrong))
    with pytest.raises(ImageError, match="sample a: an image of 20 x 20 pixels is too small"):
        searches(sample(images=(noise(20, 20),)), Annotated(sample()))
    with pytest.raises(DataError, match="sample a: no image"):
        searches(sample(images=()), Annotated(sample()))


class Counted(Expert):
    """An expert that answers differently each time it is asked, and counts."""

    def __init__(self, confidence: Any = 0.5) -> None:
        self.asked: Counter[str] = Counter()
        self.confidence = confidence

    def scan(self, image: Image.Image) -> Sequence[ScoredBox]:
        self.asked["scan"] += 1
        return [ScoredBox(Box(100.0 * n, 20, 100.0 * n + 60, 100, "original"), 0.3 + 0.1 * n) for n in range(4)]

    def drill(self, image: Image.Image, region: Box) -> Finding:
        self.asked[f"drill {region.xyxy}"] += 1
        return Finding(self.confidence, f"Finding {self.asked.total()}.")

    def answer(self, image: Image.Image, question: str, region: Box | None) -> str:
        self.asked[f"answer {region and region.xyxy}"] += 1
        assert question == "Which texture?\nA flat\nB rows\nC spots\nD grid"
        return "(B) rows" if self.asked.total() % 2 else "none of these "


def test_what_was_asked_once_is_made_again_without_the_expert(tmp_path: Path) -> None:
    expert, path = Counted(), tmp_path / "answers.jsonl"
    wide = Settings(Rules(sampler=Sampler(nucleus="top_p")))
    kept = Answers(path)
    made = searches(sample(), expert, wide, answers=kept)
    assert max(expert.asked.values()) == 1 and expert.asked["scan"] == 1 and len({trace.steps for trace in made}) > 1
    assert {trace.answer for trace in made} <= {"B", "none of these"}
    # Another question about the same image shares the scan and the drills.
    searches(sample("b"), expert, wide, answers=kept)
    assert expert.asked["scan"] == 1 and max(expert.asked.values()) == 1
    kept.close()
    content = path.read_bytes()
    assert content.splitlines() == sorted(content.splitlines())

    silent = Counted()
    offline = Answers(path, offline=True)
    assert searches(sample(), silent, wide, answers=offline) == made and not silent.asked
    with pytest.raises(DataError, match="sample c: the answer to 'a scan' is not kept; run once without --offline"):
        searches(sample("c", images=(noise(400, 300),)), silent, answers=offline)
    with pytest.raises(DataError, match="sample a: the answer to 'Which cell"):
        searches(sample(question="Which cell?", options=()), silent, answers=offline)
    # A question may be called like a kind.
    plain = sample(question="scan", options=(), answer="flat")
    assert {trace.answer for trace in searches(plain, Annotated(plain), answers=Answers(tmp_path / "other.jsonl"))} == {"flat"}
    offline.close()
    assert path.read_bytes() == content


def test_a_truncated_answer_is_asked_again(tmp_path: Path) -> None:
    expert, path = Counted(), tmp_path / "answers.jsonl"
    kept = Answers(path)
    made = searches(sample(), expert, answers=kept)
    kept.close()
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    lines = content.splitlines()
    again = Answers(path)
    asked = expert.asked.total()
    searches(sample(), expert, answers=again)
    again.close()
    assert expert.asked.total() == asked + 1 and len(path.read_bytes().splitlines()) == len(lines)
    assert made[0].steps


@pytest.mark.parametrize(
    "question, answer, message",
    [
        ("drill", [1.5, "It is flat."], r"confidence: got 1.5, expected a number from 0 to 1"),
        ("drill", [float("nan"), "It is flat."], "confidence: got nan"),
        ("drill", [0.5], r"expected \[confidence, sentence\]"),
        ("drill", [0.5, None], "expected text"),
        ("scan", [[0, 0, 50, 50, -0.1]], "confidence: got -0.1"),
        ("scan", [[0, 0, 50, 0.5]], r"expected \[x1, y1, x2, y2, confidence\]"),
        ("scan", [[50, 0, 50, 50, 0.5]], "is empty"),
        ("scan", 3, "expected a list of regions"),
        ("scan", [[0, 0, 450, 50, 0.5]], "expected one within the image of size 400 x 300"),
        ("answer", 7, "expected text"),
    ],
)
def test_a_kept_answer_that_is_invalid_is_refused_by_its_line(
    tmp_path: Path, question: str, answer: Any, message: str
) -> None:
    path = tmp_path / "answers.jsonl"
    kept = Answers(path)
    searches(sample(), Counted(), answers=kept)
    kept.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    place = next(number for number, record in enumerate(records) if record["kind"] == question)
    records[place]["answer"] = answer
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match=message) as caught:
        searches(sample(), Counted(), answers=Answers(path))
    assert str(caught.value).startswith(f"{path}:{place + 1}: ")


def test_an_experts_own_mistakes_name_the_sample() -> None:
    for confidence in (1.3, -1, float("nan"), True):
        with pytest.raises(DataError, match="sample a: confidence: got"):
            searches(sample(), Counted(confidence))
