"""Traces: they survive their file, become demonstrations, open lazily, and refuse what is damaged or of another image."""

import io
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.kit.episodes import PROCESSOR, VITAR, episode
from tests.kit.images import noise
from vitar_jax.data.traces import Mode, Step, Trace, Traces, check_trace
from vitar_jax.episodes.episode import Episode, Limits
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Answer, Look, Sample
from vitar_jax.errors import DataError
from vitar_jax.processing.files import open_image

IMAGE = noise(120, 80)
SHA256 = episode(IMAGE).images[0].sha256
BOX = Box(10, 20, 60, 70, "original")


def trace(sample_id: str = "a", search: int = 0, *steps: Step, **changes: Any) -> Trace:
    made = Trace(sample_id, SHA256, search, steps or (drill(BOX),), "It is flat.", "A", True, "confident")
    return replace(made, **changes)


def scan(thought: str = "Where?", after: float = 0.4) -> Step:
    return Step("scan", None, 0.0, after, thought)


def drill(box: Box = BOX, thought: str = "Here.") -> Step:
    return Step("drill", box, 0.4, 0.9, thought)


def write(path: Path, *traces: Trace | str) -> Path:
    lines = [made if isinstance(made, str) else json.dumps(made.to_json()) for made in traces]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


_confidence = st.floats(0, 1)
_edges = st.tuples(*[st.floats(0, 1000), st.floats(0, 1000), st.floats(1, 1e3), st.floats(1, 1e3)])
_box = _edges.map(lambda e: Box(e[0], e[1], e[0] + e[2], e[1] + e[3], "original"))
_mode: st.SearchStrategy[Mode] = st.sampled_from(["scan", "drill"])
_steps = st.lists(
    st.one_of(
        st.builds(Step, _mode, _box, _confidence, _confidence, st.text()),
        st.builds(Step, st.just("scan"), st.none(), _confidence, _confidence, st.text()),
    ),
    max_size=4,
).map(tuple)
_traces = st.builds(Trace, st.text(), st.text(), st.integers(0, 9), _steps, st.text(), st.text(), st.booleans(), st.text())


@settings(max_examples=60)
@given(_traces)
def test_a_trace_survives_its_line(made: Trace) -> None:
    assert Trace.from_json(json.loads(json.dumps(made.to_json()))) == made


@settings(max_examples=40)
@given(_traces)
def test_a_demonstration_has_one_look_per_box_and_every_thought_once(made: Trace) -> None:
    shown = made.demonstration()
    assert [look.regions for look in shown.looks] == [(step.box,) for step in made.steps if step.box] == [
        (step.box,) for step in made.looks
    ]
    assert {(look.tool, look.image) for look in shown.looks} <= {("Gaze", 0)}
    said = " ".join(filter(None, [*(look.thought for look in shown.looks), shown.answer.thought]))
    assert said == " ".join(filter(None, [*(step.thought for step in made.steps), made.thought]))
    assert shown.answer.text == made.answer


def test_a_scan_speaks_in_the_turn_that_follows_it() -> None:
    made = trace("a", 0, scan("Two spots."), drill(thought="First."), drill(thought="Closer."), scan("No more."))
    shown = made.demonstration()
    assert shown.looks == (Look("Two spots. First.", "Gaze", (BOX,)), Look("Closer.", "Gaze", (BOX,)))
    assert shown.answer == Answer("No more. It is flat.", "A")


def test_searches_come_in_order_from_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = write(tmp_path / "one" / "traces.jsonl", trace("a", 2), trace("b", 0), trace("a", 0, answer="B", right=False))
    two = write(tmp_path / "two.jsonl", trace("a", 1), trace("ü\n", 0))
    with one.open("a") as file:
        file.write(json.dumps(trace("c").to_json()))  # truncated: without its newline
    opened = Traces([tmp_path / "one", str(two)])
    assert list(opened) == ["a", "b", "ü\n"] and len(opened) == 3 and "c" not in opened
    assert opened["a"] == (trace("a", 0, answer="B", right=False), trace("a", 1), trace("a", 2))
    assert opened["ü\n"] == (trace("ü\n", 0),) and opened["c"] == ()
    before = opened.fingerprint()
    write(two, trace("a", 1), trace("d", 0))
    assert Traces([one, two]).fingerprint() != before
    assert Traces([one, two])["d"] == (trace("d", 0),)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in trace().to_json().items() if name != key}


def step(**changes: Any) -> dict[str, Any]:
    whole = trace().to_json()
    return whole | {"steps": [whole["steps"][0] | changes]}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "Expecting property name"),
        ("[1]", "expected an object"),
        (without("sample_id"), "sample_id: got None, expected text"),
        (without("search"), "search: got None, expected a number"),
        (trace().to_json() | {"search": True}, "search: got True"),
        (trace().to_json() | {"search": -1}, "search: got -1"),
    ],
)
def test_opening_names_the_line_that_has_no_place(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "t.jsonl", trace(), line if isinstance(line, str) else json.dumps(line))
    with pytest.raises(DataError, match=message) as caught:
        Traces([path])
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    "line, message",
    [
        (without("answer"), "answer: got None, expected text"),
        (without("image_sha256"), "image_sha256: got None"),
        (trace().to_json() | {"steps": 3}, "steps: got 3, expected a list"),
        (trace().to_json() | {"steps": [3]}, "step 0: got 3, expected an object"),
        (trace().to_json() | {"right": 1}, "right: got 1, expected true or false"),
        (step(mode="zoom"), "step 0: mode: got 'zoom', expected one of scan, drill"),
        (step(box=None), "step 0: box: a drill needs one"),
        (step(box=[1, 2, 3]), "step 0: got .* expected a box"),
        (step(box=[3, 2, 1, 4]), "step 0: got .* is empty"),
        (step(box=[0, 0, 1, 1, "normalized"]), "step 0: box: got frame 'normalized', expected 'original'"),
        (step(box={"shape": [1, 1], "frame": "original", "counts": "01"}), "step 0: box: got a mask, expected a box"),
        (step(after=1.01), "step 0: after: got 1.01, expected a confidence from 0 to 1"),
        (step(before=-0.1), "step 0: before: got -0.1"),
        (step(after=float("nan")), "step 0: after: got nan"),
        (step(after=True), "step 0: after: got True"),
        (step(after="0.5"), "step 0: after: got '0.5'"),
        (step(thought=None), "step 0: thought: got None, expected text"),
    ],
)
def test_reading_names_the_line_that_is_malformed(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "t.jsonl", trace("b"), json.dumps(line))
    opened = Traces([path])
    assert opened["b"] == (trace("b"),)
    with pytest.raises(DataError, match=message) as caught:
        opened["a"]
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_search_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", trace("b"), trace("a", 1))
    two = write(tmp_path / "two.jsonl", trace("a", 0), trace("a", 1))
    with pytest.raises(DataError, match=f"{two}:2: search 1 of sample 'a' occurs twice, first at {one}:2"):
        Traces([one, two])
    with pytest.raises(DataError, match="no such file of traces"):
        Traces([tmp_path])


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", trace("a"), trace("b"))
    opened = Traces([path])
    write(path, trace("b"), trace("a"))
    with pytest.raises(DataError, match="t.jsonl:1: the file has changed"):
        opened["a"]


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return content.getvalue()


def test_traces_are_of_the_image_that_the_episode_shows(tmp_path: Path) -> None:
    """By pixels, so another name or encoding of the file is the same image."""
    grey = noise(90, 70, "L")
    path = tmp_path / "grey.png"
    path.write_bytes(_png(grey))
    played = Episode(Sample("a", "Which?", (str(path),), "A"), VITAR, PROCESSOR, Limits(1000, 200, 4))
    made = trace("a", 0, image_sha256=played.images[0].sha256)
    opened = Traces([write(tmp_path / "t.jsonl", trace("b"), made)])
    sample = Sample("a", "Which?", (str(path),), "A")
    assert opened.check(sample) == (made,)
    other = tmp_path / "other.bmp"
    grey.save(other)
    assert opened.check(replace(sample, images=(str(other),))) == (made,)
    assert opened.check(sample, open_image(path)) == (made,)
    assert opened.check(replace(sample, sample_id="c", images=())) == ()

    for images, message in [((noise(90, 70, "L", seed=1),), "its image has the hash"), ((), "sample 'a' has no image")]:
        with pytest.raises(DataError, match=message) as caught:
            opened.check(replace(sample, images=images))
        assert str(caught.value).startswith(f"{opened.paths[0]}:2: ")


@pytest.mark.parametrize(
    "box, refused", [((0, 0, 120, 80), False), ((0, 0, 120.4, 80), False), ((0, 0, 121, 80), True), ((-2, 0, 90, 80), True)]
)
def test_a_box_outside_its_image_is_refused(tmp_path: Path, box: tuple[float, ...], refused: bool) -> None:
    made = trace("a", 0, scan(), drill(Box(*box, frame="original")))
    opened = Traces([write(tmp_path / "t.jsonl", made)])
    checks: list[Callable[[], object]] = [
        lambda: opened.check(Sample("a", "Which?", (IMAGE,), "A")),
        lambda: check_trace(made, IMAGE, f"{opened.paths[0]}:1"),
    ]
    for check in checks:
        if not refused:
            check()
            continue
        with pytest.raises(DataError, match=r"t.jsonl:1: step 1: got box .* expected one within the image of size 120 x 80"):
            check()


def test_opening_keeps_places_and_not_lines(tmp_path: Path) -> None:
    """At most 0.4 KB for a search of 4 KB: 60,000 searches take 24 MB."""
    long = [trace(str(number // 6), number % 6, scan("x" * 4000)) for number in range(600)]
    path = write(tmp_path / "t.jsonl", *long)
    tracemalloc.start()
    try:
        opened = Traces([path])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(opened) == 100 and kept < 400 * len(long)
    assert opened["99"] == tuple(long[-6:])
