"""The gaze-guided reasoning navigator (GRN): a pure function (state, answer) -> (state, next question).

It scans the image, drills into one region at a time, drills on while the confidence rises enough, and otherwise scans again.
The published rules go in a circle beside a frozen expert, which answers the same question alike. These differ in five points:

- Confidences outlive scans. A published scan overwrites what drilling found, and the same region is drilled for ever.
- Regions that are done with are left. A region is done once a drill gains too little.
- A further drill looks closer. The same question again would gain nothing.
- The sign of the gain counts. By its absolute value, a region that was refuted is drilled again.
- The search ends on the confidence of the region that was drilled. A published search with one clear region ends at its first
  scan, before any look.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from data_prep.gaze.regions import Finding, ScoredBox
from data_prep.gaze.sampler import Sampler
from data_prep.gaze.words import Words, joined
from vitar_jax.data.traces import Step
from vitar_jax.episodes.regions import Box, Size, iou
from vitar_jax.episodes.tools import widened

Navigator = Literal["grn", "scan", "drill", "random"]

SAME_REGION = 0.5  # IoU above which two boxes are one region (ours; the paper merges none)
EPSILON = 1e-6  # in the denominator of the gain, as in the published code
RANDOM_SIDES = (0.125, 0.5)  # sides of a random box, as shares of the image's


@dataclass(frozen=True)
class Rules:
    """The rules of a search.

    Attributes:
      navigator: "grn" scans and drills. "scan" looks at scanned regions without drilling. "drill" scans once and then drills
        only. "random" drills into random boxes.
      sampler: Draws the next region.
      min_gain: Gain in confidence, relative to the confidence before, from which a region is drilled further (0.15 in the
        published code).
      threshold: Confidence above which the region that was drilled ends the search (0.85 in the paper).
      at_threshold: Whether the threshold itself ends the search too, as in the published code. The paper's is above.
      most_gazes: Maximum number of looks (4 in the paper).
      closer: Sides of a further drill, relative to those of the drill before (ours).
      words: Sentences of the thoughts.
    """

    navigator: Navigator = "grn"
    sampler: Sampler = Sampler()
    min_gain: float = 0.15
    threshold: float = 0.85
    at_threshold: bool = False
    most_gazes: int = 4
    closer: float = 0.7
    words: Words = Words()


@dataclass(frozen=True)
class Known:
    """A region found so far: its widest box, its latest confidence, and whether the search is done with it."""

    box: Box
    confidence: float
    drilled: bool = False
    done: bool = False


@dataclass(frozen=True)
class State:
    """A search so far.

    Attributes:
      size: (width, height) of the image.
      key: Seed of the search's draws.
      regions: Regions in the order in which they were found.
      current: Index of the region that is being drilled.
      asked: Box of the drill whose answer is awaited.
      said: Sentence of the last drill, which begins the thought of the next step: a look's thought must not state what only
        the look shows.
      end: Why the search ended: "confident", "most_gazes", "none_left" (of the regions found) or "none_found"; empty before.
    """

    size: Size
    key: str
    regions: tuple[Known, ...] = ()
    current: int = -1
    asked: Box | None = None
    steps: tuple[Step, ...] = field(default=())
    said: str = ""
    thought: str = ""
    end: str = ""

    @property
    def gazes(self) -> int:
        return sum(step.box is not None for step in self.steps)

    @property
    def open(self) -> list[int]:
        """Indices of the regions that are left to look at."""
        return [place for place, region in enumerate(self.regions) if not region.done]

    @property
    def best(self) -> Step | None:
        """The look with the highest confidence after it; the first of several; None without looks."""
        return max((step for step in self.steps if step.box is not None), key=lambda step: step.after, default=None)


@dataclass(frozen=True)
class Scan:
    """The question for all abnormal regions of the image."""


@dataclass(frozen=True)
class Drill:
    """The question for what a region shows."""

    box: Box


Question = Scan | Drill


def begin(size: Size, key: str, rules: Rules) -> tuple[State, Question]:
    """Returns the first state and question of a search of an image of this (width, height).

    Raises:
      ValueError: If the image is too small for a look.
    """
    widened(Box(0, 0, *size, "original"), size)
    state = State(size, key)
    return _drill(state, _random_box(state), rules.words.random) if rules.navigator == "random" else (state, Scan())


def step(state: State, answer: Sequence[ScoredBox] | Finding, rules: Rules) -> tuple[State, Question | None]:
    """Returns the state after an answer, and the next question; None if the search has ended.

    Args:
      answer: The regions of a scan, within the image; or the finding of a drill.
    """
    if isinstance(answer, Finding):
        return _drilled(state, answer, rules)
    before = _highest(state)
    state = _merged(state, answer)
    if rules.navigator == "scan":
        return _looked(state, before, rules)
    thought = joined(state.said, rules.words.scan(len(state.open), again=bool(state.steps)))
    scanned = Step("scan", None, before, _highest(state), thought)
    return _next(replace(state, steps=(*state.steps, scanned), said=""), rules)


def _highest(state: State) -> float:
    return max((state.regions[place].confidence for place in state.open), default=0.0)


def _merged(state: State, scanned: Sequence[ScoredBox]) -> State:
    """Adds the regions of a scan. A region that was drilled or is done keeps its confidence."""
    regions = list(state.regions)
    for found in scanned:
        box = widened(found.box, state.size)
        overlaps = [iou(box, known.box) for known in regions]
        if overlaps and max(overlaps) > SAME_REGION:
            place = overlaps.index(max(overlaps))
            if not (regions[place].drilled or regions[place].done):
                regions[place] = replace(regions[place], confidence=found.confidence)
        else:
            regions.append(Known(box, found.confidence))
    return replace(state, regions=tuple(regions))


def _drilled(state: State, found: Finding, rules: Rules) -> tuple[State, Question | None]:
    asked = state.asked
    assert asked is not None
    before, regions, more, closer = 0.0, state.regions, False, _closer(asked, state.size, rules.closer)
    if rules.navigator != "random":
        known = state.regions[state.current]
        before = known.confidence
        # The tool takes no smaller box at some point. The same question again would gain nothing.
        more = (found.confidence - before) / (before + EPSILON) >= rules.min_gain and closer != asked
        known = replace(known, confidence=found.confidence, drilled=True, done=not more)
        regions = _with(regions, state.current, known)
    drilled = Step("drill", asked, before, found.confidence, state.thought)
    state = replace(state, steps=(*state.steps, drilled), regions=regions, said=found.sentence, asked=None, thought="")
    if end := _end(state, found.confidence, rules):
        return replace(state, end=end), None
    if more:
        return _drill(state, closer, rules.words.closer)
    if rules.navigator == "random":
        return _drill(state, _random_box(state), rules.words.random)
    return _next(state, rules) if rules.navigator == "drill" else (state, Scan())


def _looked(state: State, before: float, rules: Rules) -> tuple[State, Question | None]:
    """Looks at a scanned region without drilling."""
    thought = rules.words.scan(len(state.open), again=bool(state.steps))
    if not state.open:
        state = replace(state, steps=(*state.steps, Step("scan", None, before, 0.0, thought)))
        return replace(state, end="none_left" if state.regions else "none_found"), None
    place = _drawn(state, rules)
    known = state.regions[place]
    regions = _with(state.regions, place, replace(known, done=True))
    look = Step("scan", known.box, known.confidence, known.confidence, joined(thought, rules.words.look(known.box, state.size)))
    state = replace(state, regions=regions, steps=(*state.steps, look))
    end = _end(state, known.confidence, rules)
    return (replace(state, end=end), None) if end else (state, Scan())


def _with(regions: tuple[Known, ...], place: int, region: Known) -> tuple[Known, ...]:
    return (*regions[:place], region, *regions[place + 1 :])


def _end(state: State, confidence: float, rules: Rules) -> str:
    if confidence > rules.threshold or (rules.at_threshold and confidence == rules.threshold):
        return "confident"
    return "most_gazes" if state.gazes >= rules.most_gazes else ""


def _next(state: State, rules: Rules) -> tuple[State, Question | None]:
    """Drills into a region that the sampler draws, if one is left."""
    if not state.open:
        return replace(state, end="none_left" if state.regions else "none_found"), None
    place = _drawn(state, rules)
    box = state.regions[place].box
    return _drill(replace(state, current=place), box, rules.words.look(box, state.size))


def _drawn(state: State, rules: Rules) -> int:
    confidences = [state.regions[place].confidence for place in state.open]
    return state.open[rules.sampler.draw(confidences, _draws(state).random())]


def _draws(state: State) -> random.Random:
    return random.Random(f"{state.key}:{len(state.steps)}")


def _drill(state: State, box: Box, thought: str) -> tuple[State, Question]:
    return replace(state, asked=box, thought=joined(state.said, thought), said=""), Drill(box)


def _closer(box: Box, size: Size, factor: float) -> Box:
    """Returns the box shrunk about its centre, but not below what the tool takes."""
    x, y = (1 - factor) / 2 * box.width, (1 - factor) / 2 * box.height
    return widened(Box(box.x1 + x, box.y1 + y, box.x2 - x, box.y2 - y, box.frame), size)


def _random_box(state: State) -> Box:
    draws = _draws(state)
    edges = []
    for side in state.size:
        length = side * draws.uniform(*RANDOM_SIDES)
        start = draws.uniform(0, side - length)
        edges.append((start, start + length))
    (x1, x2), (y1, y2) = edges
    return widened(Box(x1, y1, x2, y2, "original"), state.size)
