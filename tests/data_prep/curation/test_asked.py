"""Questions from an endpoint: a stub of it misbehaves in every way, is killed under, and in the end gives the same rows."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import curate
from data_prep.curation import rows
from data_prep.curation.asked import read_draft, read_letter, read_thoughts
from data_prep.curation.marked import marked
from tests.kit.curation import flags, image_of, name_of, text_of, well
from tests.kit.datasets import write_boxes
from tests.kit.endpoint import RESET, Reply, serving
from tests.kit.processes import run_module, start, until
from vitar_jax.data.questions import read
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import EndpointError

KEYS = {"OPENAI_API_KEY": "secret of the writer", "VERIFIER_API_KEY": "secret of the verifier"}


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Flags of twelve images of noise with a mass or a nodule in each, one with both, one with neither."""
    images = tmp_path / "images"
    images.mkdir()
    boxes = {}
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 99, (90, 120), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        at = 7 * number
        boxes[f"{number}.png"] = [("mass" if number % 2 else "nodule", (at, 20, at + 40, 50))]
    boxes["0.png"] += [("mass", (80, 60, 110, 80))]
    boxes["1.png"] = []
    return write_boxes(tmp_path / "boxes", images, boxes, "coco")


def run(output: Path, *given: str) -> dict[str, Any]:
    curate.main([*given, f"--output={output}", "--interactive=0.5"])
    return json.loads((output / "report.json").read_text())


def written(output: Path) -> list[bytes]:
    return [(output / f"{name}.jsonl").read_bytes() for name in ("questions", "interactive")]


@pytest.mark.slow
def test_one_writes_another_checks(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    with serving(well) as writer, serving(well) as verifier:
        report = run(tmp_path / "out", *data, *flags(writer.url, verifier.url), "--seed=7", "--concurrency=3")
        asked = Counter(name_of(body) for body in (*writer.asked, *verifier.asked))
        assert max(asked.values()) == 1 and writer.most_at_once <= 3
        again = run(tmp_path / "out", *data, *flags(writer.url, verifier.url), "--seed=7")
        assert len(writer.asked) + len(verifier.asked) == asked.total()
    assert again["rows"] == report["rows"] and set(again["requests to the writer"]) == {"from the cache"}
    assert {body["model"] for body in writer.asked} == {"writer"} and {body["model"] for body in verifier.asked} == {"verifier"}
    assert {body["seed"] for body in writer.asked} == {7}
    for server, key in ((writer, KEYS["OPENAI_API_KEY"]), (verifier, KEYS["VERIFIER_API_KEY"])):
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {key}"}
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not [key for key in KEYS.values() if key.encode() in everything]

    made = (*read(tmp_path / "out" / "questions.jsonl"), *read(tmp_path / "out" / "interactive.jsonl"))
    assert report["rejected"] == {"the verifier gives another answer": 12} and report["kinds"].keys() == {
        "finding",
        "presence",
        "side",
    }
    assert all(row.options == (("A", "No"), ("B", "Yes"), ("C", "Perhaps")) and row.answer == "B" for row in made)
    shown = [row.demonstration for row in made if row.demonstration]
    thoughts = {(one.looks[0].thought, one.answer.thought) for one in shown}
    assert thoughts == {("I look in the middle.", "There it is.")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_fields", "sent"),
    [
        ("{}", {"seed": 7, "temperature": 0.0, "max_tokens": 1024}),
        ('{"seed": null}', {"temperature": 0.0, "max_tokens": 1024}),  # as Mistral's endpoints need
        ('{"temperature": null, "max_tokens": null, "max_completion_tokens": 9}', {"seed": 7, "max_completion_tokens": 9}),
        ('{"seed": 1, "top_p": 0.5}', {"seed": 1, "temperature": 0.0, "max_tokens": 1024, "top_p": 0.5}),
    ],
)
def test_fields_of_a_request(data: list[str], request_fields: str, sent: dict[str, Any], tmp_path: Path) -> None:
    with serving(well) as server:
        run(tmp_path / "out", *data, *flags(server.url), "--seed=7", "--count=1", f"--request={request_fields}")
    assert server.asked
    assert all({key: body[key] for key in body.keys() - {"model", "messages"}} == sent for body in server.asked)


def test_models_see_the_boxes_and_the_verifier_no_answer(data: list[str], tmp_path: Path) -> None:
    with serving(well) as server:
        run(tmp_path / "out", *data, *flags(server.url))
    for body in server.asked:
        text, image = text_of(body), image_of(body).astype(int)
        red = (image[..., 0] > 200) & (image[..., 1] < 50)
        if "outlined in red: [" in text:
            left, upper, right, lower = json.loads(text.partition("red: ")[2].partition("]")[0] + "]")
            down, across = np.nonzero(red)
            assert (across.min(), down.min()) == pytest.approx((max(0, left * 120 - 3), upper * 90 - 3), abs=1)
            assert (across.max(), down.max()) == pytest.approx((min(119, right * 120 + 2), lower * 90 + 2), abs=1)
        elif body["model"] == "writer":
            assert not red.any() and "does not show" in text
        if body["model"] == "verifier":
            assert "annotation says" not in text and "right answer" not in text


def test_a_large_image_is_sent_smaller_with_its_boxes(tmp_path: Path) -> None:
    Image.new("L", (2048, 512)).save(tmp_path / "a.png")
    image = marked(tmp_path / "a.png", [Box(400, 100, 800, 300, "original")], longest=1024)
    down, across = np.nonzero(np.asarray(image)[..., 0])
    assert image.size == (1024, 256)
    assert (across.min(), across.max(), down.min(), down.max()) == (197, 402, 47, 152)
    assert not np.asarray(image)[50:150, 200:400].any()  # the box itself can be seen


MISDEEDS: list[tuple[Any, str]] = [
    (Reply(status=500), "server_error"),
    (RESET, "connection"),
    (Reply(status=429, headers={"Retry-After": "0"}), "rate_limit"),
    (Reply(text="late", after=0.5), "timeout"),
    (Reply(body=b"<html>"), "no_chat"),
    (Reply(text=""), "empty"),
    (Reply(text="I'm sorry, I cannot help with medical images."), "refusal"),
    (Reply(text="It shows a mass."), "bad_json"),
    (Reply(text='{"thoughts": 1}'), "bad_schema"),
    (Reply(text='{"answer": "Z", "options": ["a"]}'), "bad_schema"),
]


@pytest.mark.slow
def test_every_failure_is_counted_and_tried_again(data: list[str], tmp_path: Path) -> None:
    """Two requests of five go wrong at the first start, each in its own way, whenever they are tried."""
    misdeed = {}

    def badly(body: dict[str, Any], _: int) -> Any:
        name = name_of(body)
        if int(name, 16) % 5 < 2:
            misdeed.setdefault(name, MISDEEDS[len(misdeed) % len(MISDEEDS)])
            return misdeed[name][0]
        return well(body)

    with serving(well) as server:
        run(tmp_path / "undisturbed", *data, *flags(server.url))
        wanted = {name_of(body) for body in server.asked}
    with serving(badly) as server:
        first = run(tmp_path / "out", *data, *flags(server.url), "--timeout=0.2")
    assert len({kind for _, kind in misdeed.values()}) == 9
    assert first["failed"] == Counter(kind for _, kind in misdeed.values())
    tried = Counter(name_of(body) for body in server.asked)
    passing = {"server_error", "connection", "rate_limit", "timeout"}
    assert all(times == (2 if name in misdeed and misdeed[name][1] in passing else 1) for name, times in tried.items())
    assert written(tmp_path / "out") != written(tmp_path / "undisturbed")
    with serving(well) as server:
        second = run(tmp_path / "out", *data, *flags(server.url))
        asked = [name_of(body) for body in server.asked]
    assert second["failed"] == {} and len(asked) == len(set(asked))
    assert set(asked) == wanted - (tried.keys() - misdeed.keys())
    assert written(tmp_path / "out") == written(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(data: list[str], tmp_path: Path) -> None:
    """Twice, in the middle of requests; only those that were not yet answered are asked once more."""
    with serving(well) as server:
        run(tmp_path / "undisturbed", *data, *flags(server.url))
        count = len(server.asked)
    output = tmp_path / "out"

    def slowly(body: dict[str, Any], _: int) -> Reply:
        return Reply(well(body), after=0.02)

    with serving(slowly) as server:
        how = [*flags(server.url), f"--output={output}", "--interactive=0.5", "--concurrency=2"]
        command = ["data_prep.curate", *data, *how]
        for after in (10, 40):
            running = start(sys.executable, "-m", *command, stderr=subprocess.DEVNULL)
            until(lambda after=after: len(server.asked) >= after, running)
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            with (output / "replies" / "writer.jsonl").open("ab") as file:
                file.write(b'{"sha256": "half a li')
            assert not (output / "questions.jsonl").exists()
        assert run_module(*command).returncode == 0
        asked = Counter(name_of(body) for body in server.asked)
    assert len(asked) == count and asked.total() <= count + 2 * 2
    assert written(output) == written(tmp_path / "undisturbed")


def test_an_endpoint_that_is_gone_ends_the_run(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "STOP_AFTER", 4)
    with serving(lambda *_: Reply(status=500)) as server, pytest.raises(SystemExit):
        run(tmp_path / "out", *data, *flags(server.url), "--retries=0", "--concurrency=1")
    assert "4 failures in a row" in capsys.readouterr().err and len(server.asked) < 10
    with serving(lambda *_: Reply(status=401)) as server, pytest.raises(SystemExit):
        run(tmp_path / "out", *data, *flags(server.url), "--concurrency=1")
    assert "'writer'" in capsys.readouterr().err and len(server.asked) < 5


def test_why_an_endpoint_refuses_is_said(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = Reply(status=422, body=b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}')
    with serving(lambda body, _: refused if "seed" in body else well(body)) as server:
        with pytest.raises(SystemExit):
            run(tmp_path / "out", *data, *flags(server.url), "--count=2")
        assert "writer: bad_request: " in (said := capsys.readouterr().err) and "status 422: body.seed: extra_forbidden" in said
        run(tmp_path / "out", *data, *flags(server.url), "--count=2", '--request={"seed": null}')


def test_a_question_about_the_outline_is_rejected(data: list[str], tmp_path: Path) -> None:
    def about_it(body: dict[str, Any], _: int) -> str:
        return well(body).replace("A place", "What is in the red rectangle")

    with serving(about_it) as server:
        report = run(tmp_path / "out", *data, *flags(server.url))
    assert report["rejected"]["the question mentions the outline"] == 24


# --- replies ------------------------------------------------------------------------------------

GOOD = {"question": "Which?", "options": ["a", "b"], "answer": "A"}


def test_replies_are_read_leniently_where_nothing_is_in_doubt() -> None:
    draft = read_draft(
        f"Sure, sorry for the wait! {json.dumps(GOOD | {'options': ['A. flat ', ' (B) rows'], 'answer': ' b) '})}"
    )
    assert (draft.question, draft.options, draft.answer, draft.answer_text) == ("Which?", ("flat", "rows"), "B", "rows")
    assert read_letter('{"answer": "None"}', 4) == ""
    assert read_thoughts('{"thought": " a\\nb ", "rethought": "c", "more": 1}') == ("a b", "c")


@pytest.mark.parametrize(
    "reply, kind",
    [
        ("", "bad_json"),
        ("[]", "bad_json"),
        ('{"answer": "A",}', "bad_json"),
        ('{"a": ' * 100_000 + "}", "bad_json"),
        (json.dumps(GOOD | {"question": "\ud800"}), "bad_json"),
        ("I am unable to say.", "refusal"),
        ("I can’t.", "refusal"),
        ("{}", "bad_schema"),
        (json.dumps(GOOD | {"question": " "}), "bad_schema"),
        (json.dumps(GOOD | {"options": ["a"]}), "bad_schema"),
        (json.dumps(GOOD | {"options": ["a", 1]}), "bad_schema"),
        (json.dumps(GOOD | {"options": ["a", "A"]}), "bad_schema"),
        (json.dumps(GOOD | {"options": "a|b"}), "bad_schema"),
        (json.dumps(GOOD | {"answer": "C"}), "bad_schema"),
        (json.dumps(GOOD | {"answer": "none"}), "bad_schema"),
        (json.dumps(GOOD | {"answer": 0}), "bad_schema"),
    ],
)
def test_replies_that_say_nothing(reply: str, kind: str) -> None:
    with pytest.raises(EndpointError) as caught:
        read_draft(reply)
    assert caught.value.kind == kind
