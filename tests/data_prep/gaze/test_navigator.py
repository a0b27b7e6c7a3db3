"""The navigator, rule by rule, beside what the published rules do with the same expert; and what holds for any expert."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.gaze.navigator import Drill, Question, Rules, Scan, State, begin, step
from data_prep.gaze.regions import Finding, ScoredBox
from data_prep.gaze.sampler import Sampler
from vitar_jax.episodes.actions import ActionError
from vitar_jax.episodes.regions import Box, iou
from vitar_jax.episodes.tools import TOOLS, Context

SIZE = (400, 300)
BOXES = [Box(200.0 * n, 0, 200.0 * n + 100, 100, "original") for n in range(2)]
BOXES += [Box(200.0 * n, 150, 200.0 * n + 100, 250, "original") for n in range(2)]

Table = Sequence[tuple[float, Sequence[float]]]  # by region: confidence of a scan, and of drills from wide to close


@dataclass(frozen=True)
class Least(Sampler):
    """Takes the least confident region, as the published code does, so that both navigators choose alike."""

    def draw(self, confidences: Sequence[float], uniform: float) -> int:
        return list(confidences).index(min(confidences))


def region_of(box: Box) -> int:
    overlaps = [min(box.x2, one.x2) > max(box.x1, one.x1) and min(box.y2, one.y2) > max(box.y1, one.y1) for one in BOXES]
    return overlaps.index(True)


def frozen(table: Table, question: Question) -> list[ScoredBox] | Finding:
    """Answers of an expert that answers the same question alike."""
    if isinstance(question, Scan):
        return [ScoredBox(box, scanned) for box, (scanned, _) in zip(BOXES, table, strict=False)]
    place = region_of(question.box)
    closeness = [100.0, 70.0, 49.0, 40.0]  # sides of further drills; the tool takes no side below 28 + 400 / 28 + 1 = 43.3
    nearest = min(range(4), key=lambda n: abs(closeness[n] - question.box.width))
    drills = table[place][1]
    return Finding(drills[min(nearest, len(drills) - 1)], f"Finding {place}.")


def published(table: Table, steps: int = 4) -> str:
    """The published rules: any confidence ends, scans overwrite, abs() of the gain, and the same question again."""
    confidences: list[float] = []
    said, drilling = [], False
    while len(said) < steps and not any(confidence >= 0.85 for confidence in confidences):
        if not drilling:
            confidences = [scanned for scanned, _ in table]
            said.append("S")
            drilling = bool(confidences)
            continue
        place = confidences.index(min(confidences))
        before, after = confidences[place], table[place][1][0]
        said.append(f"D{place}:{before:.2f}>{after:.2f}")
        confidences[place] = after
        drilling = abs((after - before) / (before + 1e-6)) >= 0.15
    return " ".join(said)


def search(table: Table, rules: Rules) -> State:
    state, question = begin(SIZE, "seed", rules)
    while question is not None:
        state, question = step(state, frozen(table, question), rules)
    return state


def written(state: State) -> str:
    names = []
    for one in state.steps:
        letter = "S" if one.mode == "scan" else "D"
        names.append(f"{letter}{region_of(one.box)}:{one.before:.2f}>{one.after:.2f}" if one.box else letter)
    return " ".join([*names, state.end])


@pytest.mark.parametrize(
    "table, theirs, ours",
    [
        pytest.param(
            [(0.6, [0.9]), (0.5, [0.55]), (0.4, [0.05])],
            "S D2:0.40>0.05 D2:0.05>0.05 S",
            "S D2:0.40>0.05 S D1:0.50>0.55 S D0:0.60>0.90 confident",
            id="a refuted region is left: the sign counts",
        ),
        pytest.param(
            [(0.6, [0.9]), (0.4, [0.42])],
            "S D1:0.40>0.42 S D1:0.40>0.42",
            "S D1:0.40>0.42 S D0:0.60>0.90 confident",
            id="confidences outlive scans: no circle",
        ),
        pytest.param([(0.9, [0.95])], "S", "S D0:0.90>0.95 confident", id="a clear region is looked at before the end"),
        pytest.param(
            [(0.4, [0.3]), (0.9, [0.5])],
            "S",
            "S D0:0.40>0.30 S D1:0.90>0.50 S none_left",
            id="the drilled region ends, not any region",
        ),
        pytest.param(
            [(0.4, [0.6, 0.75, 0.9])],
            "S D0:0.40>0.60 D0:0.60>0.60 S",
            "S D0:0.40>0.60 D0:0.60>0.75 D0:0.75>0.90 confident",
            id="a further drill looks closer",
        ),
        pytest.param(
            [(0.4, [0.5, 0.55])],
            "S D0:0.40>0.50 D0:0.50>0.50 S",
            "S D0:0.40>0.50 D0:0.50>0.55 S none_left",
            id="a saturated region is done",
        ),
        pytest.param(
            [(0.10, [0.3, 0.4, 0.5, 0.6])],
            "S D0:0.10>0.30 D0:0.30>0.30 S",
            "S D0:0.10>0.30 D0:0.30>0.40 D0:0.40>0.50 D0:0.50>0.60 most_gazes",
            id="four gazes at most, and a scan is none",
        ),
        pytest.param(
            [(0.1, [0.1]), (0.2, [0.2]), (0.3, [0.3]), (0.4, [0.4])],
            "S D0:0.10>0.10 S D0:0.10>0.10",
            "S D0:0.10>0.10 S D1:0.20>0.20 S D2:0.30>0.30 S D3:0.40>0.40 most_gazes",
            id="every region gets its look",
        ),
        pytest.param([], "S S S S", "S none_found", id="nothing to look at"),
        pytest.param(
            [(0.5, [0.85])],
            "S D0:0.50>0.85",
            "S D0:0.50>0.85 D0:0.85>0.85 S none_left",
            id="exactly the threshold goes on: the paper's is above",
        ),
    ],
)
def test_traces(table: Table, theirs: str, ours: str) -> None:
    assert published(table) == theirs
    assert written(search(table, Rules(sampler=Least()))) == ours


@pytest.mark.parametrize(
    "changes, table, expected",
    [
        ({"at_threshold": True}, [(0.5, [0.85])], "S D0:0.50>0.85 confident"),
        ({"threshold": 0.5}, [(0.2, [0.51])], "S D0:0.20>0.51 confident"),
        ({"most_gazes": 2}, [(0.1, [0.3, 0.4, 0.5])], "S D0:0.10>0.30 D0:0.30>0.40 most_gazes"),
        ({"min_gain": 0.5}, [(0.4, [0.6, 0.7])], "S D0:0.40>0.60 S none_left"),
        ({"min_gain": 0.4999}, [(0.4, [0.6, 0.7])], "S D0:0.40>0.60 D0:0.60>0.70 S none_left"),
        ({"navigator": "scan"}, [(0.4, [0.9]), (0.6, [0.9])], "S0:0.40>0.40 S1:0.60>0.60 S none_left"),
        ({"navigator": "scan"}, [(0.9, [0.1]), (0.95, [0.1])], "S0:0.90>0.90 confident"),
        ({"navigator": "scan", "most_gazes": 1}, [(0.4, [0.9]), (0.6, [0.9])], "S0:0.40>0.40 most_gazes"),
        ({"navigator": "scan"}, [], "S none_found"),
        ({"navigator": "drill"}, [(0.4, [0.3]), (0.6, [0.7, 0.9])], "S D0:0.40>0.30 D1:0.60>0.70 D1:0.70>0.90 confident"),
        ({"navigator": "drill"}, [(0.4, [0.3])], "S D0:0.40>0.30 none_left"),
        ({"navigator": "drill"}, [], "S none_found"),
    ],
)
def test_keys_and_ablations(changes: dict, table: Table, expected: str) -> None:
    assert written(search(table, replace(Rules(sampler=Least()), **changes))) == expected


def test_a_scan_meets_the_regions_of_the_last_one() -> None:
    """Above an IoU of 0.5 it is the same region, which keeps what drilling found; below, it is another."""
    rules = Rules(sampler=Least())
    state, _ = begin(SIZE, "", rules)
    state, _ = step(state, [ScoredBox(Box(0, 0, 100, 100, "original"), 0.4)], rules)
    state, question = step(state, Finding(0.3, "Flat."), rules)
    assert question == Scan()
    again = [ScoredBox(Box(10, 0, 110, 100, "original"), 0.99), ScoredBox(Box(90, 0, 190, 100, "original"), 0.2)]
    state, question = step(state, again, rules)
    assert [(known.confidence, known.done) for known in state.regions] == [(0.3, True), (0.2, False)]
    assert question == Drill(again[1].box)
    fresh, _ = step(begin(SIZE, "", rules)[0], again[:1], rules)
    assert [known.confidence for known in fresh.regions] == [0.99]


def test_no_look_says_what_only_that_look_shows() -> None:
    state = search([(0.6, [0.9]), (0.5, [0.55]), (0.4, [0.05])], Rules(sampler=Least()))
    drills = [place for place, one in enumerate(state.steps) if one.mode == "drill"]
    for place in drills[:-1]:
        sentence = f"Finding {region_of(state.steps[place].box or BOXES[0])}."
        assert sentence not in state.steps[place].thought and state.steps[place + 1].thought.startswith(sentence)
    assert state.said == "Finding 0." and "Finding 0." not in " ".join(one.thought for one in state.steps)
    assert [one.thought for one in state.steps[:3]] == [
        "3 regions may be abnormal.",
        "I enlarge the one at the lower left.",
        "Finding 2. I look at the whole image again. 2 regions may be abnormal.",
    ]
    closer = search([(0.4, [0.6, 0.75, 0.9])], Rules(sampler=Least()))
    assert [one.thought for one in closer.steps[1:3]] == ["I enlarge the one at the upper left.", "Finding 0. I look closer."]


def test_an_image_too_small_for_a_look_is_refused() -> None:
    with pytest.raises(ValueError, match="an image of 29 x 300 pixels is too small"):
        begin((29, 300), "", Rules())


_confidences = st.sampled_from([0.0, 0.05, 0.4, 0.5, 0.85, 0.86, 1.0]) | st.floats(0, 1)


@st.composite
def _answers(draw: st.DrawFn) -> tuple[list[list[ScoredBox]], list[Finding]]:
    """Answers of an expert that need not be consistent: thin, overlapping and equal boxes, and any confidence."""
    edges = st.tuples(st.floats(0, 380), st.floats(0, 280), st.floats(0.5, 400), st.floats(0.5, 300))

    def box(e: tuple[float, ...]) -> Box:
        return Box(e[0], e[1], min(e[0] + e[2], 400), min(e[1] + e[3], 300), "original")

    regions = st.builds(ScoredBox, edges.map(box), _confidences)
    scans = draw(st.lists(st.lists(regions, max_size=4), min_size=1, max_size=4))
    findings = draw(st.lists(st.builds(Finding, _confidences, st.text(max_size=3)), min_size=1, max_size=6))
    return scans, findings


@pytest.mark.slow
@settings(max_examples=150)
@given(_answers(), st.sampled_from(["grn", "scan", "drill", "random"]), st.integers(1, 5))
def test_for_any_expert(answers: tuple[list[list[ScoredBox]], list[Finding]], navigator: str, most: int) -> None:
    scans, findings = answers
    rules = Rules(navigator=navigator, most_gazes=most)  # type: ignore[arg-type]

    def play() -> list[tuple[Question | None, State]]:
        state, question = begin(SIZE, "key", rules)
        played: list[tuple[Question | None, State]] = [(question, state)]
        scanned = drilled = 0
        while question is not None:
            assert len(played) <= 2 * most + 2
            if isinstance(question, Scan):
                answer, scanned = scans[scanned % len(scans)], scanned + 1
            else:
                answer, drilled = findings[drilled % len(findings)], drilled + 1
            state, question = step(state, answer, rules)
            played.append((question, state))
        return played

    played = play()
    assert play() == played  # the answers alone decide
    state = played[-1][1]
    assert state.end in ("confident", "most_gazes", "none_left", "none_found") and state.gazes <= most
    picture = Image.new("L", SIZE)
    for (question, before), (following, after) in zip(played, played[1:], strict=False):
        if isinstance(question, Drill):
            assert not isinstance(TOOLS["zoom"](Context(picture, (question.box,), 784)), ActionError)
            last = after.steps[-1]
            if navigator == "grn" and last.after < last.before:
                assert following in (Scan(), None)
        for known, now in zip(before.regions, after.regions, strict=False):
            assert now.confidence == known.confidence or not known.drilled or isinstance(question, Drill)
            assert not known.done or now == known
    if navigator == "scan":
        assert all(one.mode == "scan" for one in state.steps)
    if navigator == "drill":
        assert [one.mode for one in state.steps].count("scan") == 1
    if navigator in ("grn", "drill"):
        looked = [one.box for one in state.steps if one.box]
        left: list[Box] = []
        for first, second in zip(looked, looked[1:], strict=False):
            inside = second.x1 >= first.x1 - 1e-6 and second.x2 <= first.x2 + 1e-6 and second.area < first.area
            if not inside:
                left.append(first)
            assert second not in left  # no look at a region that the search is done with
    if state.end == "confident":
        assert state.steps[-1].after > 0.85 and state.steps[-1].box
    if state.best:
        assert state.best.after == max(one.after for one in state.steps if one.box)
    assert all(iou(a.box, b.box) <= 0.5 for n, a in enumerate(state.regions) for b in state.regions[:n])
