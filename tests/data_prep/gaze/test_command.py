"""`python -m data_prep.gaze`: the same bytes however it is run, what an endpoint can do wrong, and its errors."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_prep.gaze.__main__ import main
from data_prep.gaze.asked import AskedExpert
from data_prep.gaze.regions import Finding, ScoredBox
from data_prep.sets.slake import SET
from tests.kit import slake
from tests.kit.curation import file_of
from tests.kit.endpoint import RESET, Reply, serving
from tests.kit.episodes import PROCESSOR
from tests.kit.files import write_files
from tests.kit.gaze import expert_reply, write_questions
from tests.kit.images import noise, picture
from tests.kit.processes import run_module, start, until
from vitar_jax.data.questions import read
from vitar_jax.data.sources import SourceConfig, load_source
from vitar_jax.data.traces import Traces
from vitar_jax.episodes.episode import Limits
from vitar_jax.episodes.experts import demonstrate
from vitar_jax.episodes.protocols import PROTOCOLS
from vitar_jax.episodes.regions import Box
from vitar_jax.errors import EndpointError
from vitar_jax.runtime.endpoint import ChatClient

FILES = ("traces.jsonl", "answers.jsonl", "report.json", "settings.json")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "data")


def run(output: Path, questions: Path, *flags: str, expert: str = "annotations") -> dict[str, Any]:
    main([f"--set={questions}", f"--output={output}", f"--expert={expert}", *flags])
    return json.loads((output / "report.json").read_text())


def written(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in FILES]


def test_the_same_seed_gives_the_same_bytes(questions: Path, tmp_path: Path) -> None:
    flags = ["--nucleus=top_p", "--misses=0.2", "--false_regions=0.5", "--wrong_answers=0.2"]
    run(tmp_path / "one", questions, *flags, "--concurrency=1")
    run(tmp_path / "many", questions, *flags, "--concurrency=7")
    first = written(tmp_path / "one")
    assert written(tmp_path / "many") == first
    run(tmp_path / "many", questions, *flags)
    assert written(tmp_path / "many") == first
    run(tmp_path / "many", questions, *flags, "--offline")
    assert written(tmp_path / "many") == first
    run(tmp_path / "other", questions, *flags, "--seed=1")
    assert written(tmp_path / "other")[0] != first[0]


def test_the_report_counts_the_traces(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path / "out", questions, "--nucleus=top_p", "--wrong_answers=0.5", "--seed=3")
    opened = Traces([tmp_path / "out"])
    samples = read(questions)
    found = {sample.sample_id: opened.check(sample) for sample in samples}
    traces = [trace for some in found.values() for trace in some]
    assert list(opened) == [sample.sample_id for sample in samples] and len(traces) == report["searches"] == 36
    assert {trace.sample_id: trace.answer == "ABC"[int(trace.sample_id[2:]) % 3] for trace in traces} == {
        trace.sample_id: trace.right for trace in traces
    }
    assert report["share_right"] == sum(trace.right for trace in traces) / 36
    unlike = [len({(trace.steps, trace.answer) for trace in some}) for some in found.values()]
    assert report["different_searches"] == sum(unlike) and max(unlike) > 1
    assert report["by_different_searches"] == {str(n): c for n, c in sorted(Counter(unlike).items())}
    assert report["looks"] == {str(n): c for n, c in sorted(Counter(len(trace.looks) for trace in traces).items())}
    assert report["ends"] == dict(sorted(Counter(trace.end for trace in traces).items()))
    # No two looks of a search overlap by half, so all pairs differ where there is a pair.
    equal = [len({(trace.right, min(len(trace.looks), 2)) for trace in some}) == 1 for some in found.values()]
    assert report["questions_of_equal_worth"] == sum(equal)
    assert "share_right" in capsys.readouterr().out

    sheet = tmp_path / "out" / "sheet"
    page = (sheet / "index.html").read_text()
    named = re.findall(r'src="([^"]+)"', page)
    assert len(named) >= 6 and all((sheet / name).is_file() for name in named)
    assert not re.search(r"https?://|<script", page)


def test_ablations_and_keys(questions: Path, tmp_path: Path) -> None:
    flags = ["--navigator=scan", "--searches=2", "--most_gazes=2", "--sampler=first", "--count=3"]
    assert run(tmp_path / "out", questions, *flags)["looks"] == {"2": 6}
    assert {trace.steps[0].mode for trace in Traces([tmp_path / "out"])["q/0"]} == {"scan"}
    recorded = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert recorded["navigator"] == "scan" and recorded["searches"] == 2 and "output" not in recorded
    assert run(tmp_path / "out", questions, "--threshold=1.0", "--min_gain=0.1", "--searches=1")["ends"] == {"most_gazes": 6}


def flags_for(url: str) -> list[str]:
    return [f"--endpoint={url}", "--model=expert", "--retries=0", "--timeout=5", "--nucleus=top_p"]


@pytest.mark.slow
def test_an_endpoint_is_asked_once_and_then_not_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_questions(tmp_path / "few", 2)
    with serving(expert_reply) as server:
        report = run(tmp_path / "out", questions, *flags_for(server.url), expert="endpoint")
        asked = Counter(json.dumps(body, sort_keys=True) for body in server.asked)
        assert max(asked.values()) == 1 and report["questions"] == 2 and report["failed"] == {}
        run(tmp_path / "other", questions, *flags_for(server.url), "--concurrency=1", expert="endpoint")
    first = written(tmp_path / "out")
    assert written(tmp_path / "other") == first
    # Without the server, and without its replies.
    (tmp_path / "out" / "replies.jsonl").unlink()
    offline = ["--model=expert", "--nucleus=top_p", "--retries=0", "--offline"]
    run(tmp_path / "out", questions, *offline, expert="endpoint")
    assert written(tmp_path / "out")[:3] == first[:3]
    # An answer that is not kept.
    lines = first[1].splitlines(keepends=True)
    (tmp_path / "out" / "answers.jsonl").write_bytes(b"".join(lines[1:]))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "out", questions, *offline, expert="endpoint")
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and re.fullmatch(r"error: sample q/\d: the answer to .* is not kept.*", error)
    assert written(tmp_path / "out")[0] == first[0]  # the traces of the last run stay


class Scripted(ChatClient):
    """A client with one reply, for requests that begin with a text."""

    def __init__(self, reply: str):
        self.reply = reply

    def ask(self, messages: Any, check: Callable[[str], object] = str) -> str:
        check(self.reply)
        return self.reply


@pytest.mark.parametrize(
    "kind, question, reply",
    [
        ("bad_json", "scan", "There is a lesion in the middle."),
        ("refusal", "scan", "I am sorry, I cannot help."),
        ("bad_box", "scan", '{"finding": "nothing"}'),
        ("bad_box", "scan", '{"regions": [{"confidence": 0.5}]}'),
        ("bad_box", "scan", '{"regions": [{"box": [0, 0, 20], "confidence": 0.5}]}'),
        ("bad_box", "scan", '{"regions": [{"box": [20, 0, 20, 20], "confidence": 0.5}]}'),
        ("bad_box", "scan", '{"regions": [{"box": [0, 0, 400, 20], "confidence": 0.5}]}'),
        ("bad_box", "scan", '{"regions": [{"box": [0, 0, NaN, 20], "confidence": 0.5}]}'),
        ("bad_box", "scan", '{"regions": [3]}'),
        ("bad_number", "scan", '{"regions": [{"box": [0, 0, 20, 20]}]}'),
        ("bad_number", "drill", '{"confidence": NaN, "finding": "flat"}'),
        ("bad_number", "drill", '{"confidence": 95, "finding": "flat"}'),
        ("bad_number", "drill", '{"confidence": true, "finding": "flat"}'),
        ("bad_number", "drill", '{"confidence": "high", "finding": "flat"}'),
        ("bad_text", "drill", '{"confidence": 0.5}'),
        ("bad_text", "drill", '{"confidence": 0.5, "finding": "</reasoning>"}'),
        ("bad_text", "answer", '{"answer": ""}'),
        ("bad_text", "answer", '{"answer": 3}'),
    ],
)
def test_unusable_replies_have_kinds(kind: str, question: str, reply: str) -> None:
    expert, image, box = AskedExpert(Scripted(reply), "expert", {}), noise(120, 90), Box(0, 0, 40, 40, "original")
    ask = {
        "scan": lambda: expert.scan(image),
        "drill": lambda: expert.drill(image, box),
        "answer": lambda: expert.answer(image, "Which?", box),
    }
    with pytest.raises(EndpointError) as caught:
        ask[question]()
    assert caught.value.kind == kind


def test_boxes_are_in_pixels_of_the_image_that_is_sent() -> None:
    """An image of 2,048 px is sent at 1,024. The region is enlarged from the image itself."""
    image, asked = noise(2048, 1000, "L"), []

    class Recorded(Scripted):
        def ask(self, messages: Any, check: Callable[[str], object] = str) -> str:
            asked.append(messages[1])
            return super().ask(messages, check)

    reply = {"regions": [{"box": [100, 50, 300, 500.3], "confidence": share} for share in (0.2, 0.9)]}
    expert = AskedExpert(Recorded(json.dumps(reply | {"confidence": 1, "finding": "It is flat. "})), "expert", {}, most=1)
    (found,) = expert.scan(image)
    assert found == ScoredBox(Box(200, 100, 600, 1000, "original"), 0.9)
    assert expert.drill(image, Box(200, 100, 600, 900, "original")) == Finding(1.0, "It is flat.")
    assert "1024 x 500 pixels" in str(asked[0]["content"][1]) and "[100, 50, 300, 450]" in str(asked[1]["content"][2])
    urls = [one["content"][0]["image_url"]["url"] for one in asked]
    assert urls[0] is urls[1]  # encoded once
    pictures = [file_of({"messages": [None, {"content": [part]}]}) for part in asked[1]["content"][:2]]
    assert [picture.size for picture in pictures] == [(1024, 500), (256, 512)]
    expected = image.convert("RGB").resize((256, 512), Image.Resampling.BICUBIC, box=(200, 100, 600, 900))
    assert pictures[1].tobytes() == expected.tobytes()


@pytest.mark.slow
def test_what_failed_is_counted_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_questions(tmp_path / "few", 4)
    spoilt = {2: RESET, 5: "no JSON", 8: Reply(status=429, body=b"{}")}

    def badly(body: dict[str, Any], number: int) -> Any:
        return spoilt.get(number, expert_reply(body))

    flags = ["--concurrency=1", "--searches=1"]
    with serving(expert_reply) as server:
        run(tmp_path / "well", questions, *flags_for(server.url), *flags, expert="endpoint")
    with serving(badly) as server:
        report = run(tmp_path / "out", questions, *flags_for(server.url), *flags, expert="endpoint")
    assert sum(report["failed"].values()) == 3 and report["questions"] == 1
    assert report["failed"] == {"bad_json": 1, "connection": 1, "rate_limit": 1}
    assert "endpoint: bad_json:" in capsys.readouterr().err
    with serving(expert_reply) as server:
        assert run(tmp_path / "out", questions, *flags_for(server.url), *flags, expert="endpoint")["failed"] == {}
    assert written(tmp_path / "out") == written(tmp_path / "well")


@pytest.mark.slow
def test_a_built_set_is_searched_and_joined(build_set: Callable[..., Path], tmp_path: Path) -> None:
    """SLAKE's own boxes: two that the question names, and one other."""
    source = slake.published(tmp_path / "slake", {"question": "Where is the nodule?"}, answer="In the left lung")
    boxes = [{"Left Lung": [10, 10, 60, 60]}, {"Right Lung": [200, 10, 60, 60]}, {"Nodule": [20, 100, 50, 50]}]
    drawn = {"imgs/xmlab1/source.jpg": picture(1, size=(400, 300)), "imgs/xmlab1/detection.json": json.dumps(boxes)}
    data_dir = build_set("slake", write_files(source, drawn))
    named = ["--set=slake", f"--data_dir={data_dir}", "--split=test", "--language=en", "--expert=annotations"]
    main([*named, f"--output={tmp_path / 'out'}", "--searches=3"])
    traces = Traces([tmp_path / "out"])["slake-2"]
    assert len(traces) == 3 and all(trace.right and trace.end == "confident" for trace in traces)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["version"] == SET.version
    options = {"traces": str(tmp_path / "out"), "set": "slake", "data_dir": str(data_dir), "language": "en"}
    joined = load_source(SourceConfig("data_prep.gaze:source", "test", options))
    assert [joined[number].demonstration for number in range(len(joined))] == [trace.demonstration() for trace in traces]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Twice, in the middle of requests. Only requests that were in flight are repeated."""
    questions = write_questions(tmp_path / "few", 4)
    with serving(expert_reply) as server:
        run(tmp_path / "undisturbed", questions, *flags_for(server.url), expert="endpoint")
        count = len(server.asked)
    output = tmp_path / "out"
    with serving(lambda body, _: Reply(expert_reply(body), after=0.02)) as server:
        flags = [f"--set={questions}", f"--output={output}", "--expert=endpoint", "--concurrency=2", *flags_for(server.url)]
        command = ["data_prep.gaze", *flags]
        for after in (5, 15):
            running = start(sys.executable, "-m", *command, stderr=subprocess.DEVNULL)
            until(lambda after=after: len(server.asked) >= after, running)
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            with (output / "answers.jsonl").open("ab") as file:
                file.write(b'{"key": "half a li')
            assert not (output / "traces.jsonl").exists()
        assert run_module(*command).returncode == 0
        asked = Counter(json.dumps(body, sort_keys=True) for body in server.asked)
    assert len(asked) == count and asked.total() <= count + 2 * 2
    assert written(output) == written(tmp_path / "undisturbed")


@pytest.mark.slow
def test_what_an_expert_writes_is_text(questions: Path, tmp_path: Path) -> None:
    """The dialogues play under `medeyes`, and come back from the turns with the boxes and answers of the traces."""
    with serving(expert_reply) as server:
        run(tmp_path / "out", questions, *flags_for(server.url), "--searches=3", expert="endpoint")
    opened = Traces([tmp_path / "out"])
    chat, looks = PROCESSOR.chat, 0
    for sample in read(questions)[:3]:
        for trace in opened.check(sample):
            played = demonstrate(
                replace(sample, demonstration=trace.demonstration()),
                PROTOCOLS["medeyes"],
                PROCESSOR,
                Limits(tokens=4000, turn_tokens=900, images=6),
            )
            assert played.predicted_answer == trace.answer and not any(turn.error for turn in played.turns)
            assert [turn.thought for turn in played.turns] == [
                *(look.thought for look in trace.demonstration().looks),
                trace.demonstration().answer.thought,
            ]
            height, width = played.images[0].size
            for turn, step in zip(played.turns, trace.looks, strict=False):
                assert step.box
                edges = zip(step.box.xyxy, turn.boxes_original[0], (width, height) * 2, (120, 90) * 2, strict=True)
                assert all(abs(a - b) <= 0.51 * side / view for a, b, view, side in edges)
            looks += len(trace.looks)
            written_ids = [token for token, mask in zip(played.token_ids, played.loss_mask, strict=True) if mask]
            assert written_ids.count(chat.im_end) == len(played.turns)
            if len(played.turns) > 1:
                assert "<|im_end|>" in " ".join(turn.thought or "" for turn in played.turns)
    assert looks


EXPERT = """
from data_prep.gaze.regions import Expert, Finding, ScoredBox
from vitar_jax.episodes.regions import Box

class Mine(Expert):
    def scan(self, image):
        return [ScoredBox(Box(0, 0, image.width, image.height, "original"), 0.5)]

    def drill(self, image, region):
        return Finding(CONFIDENCE, "All of it.")

    def answer(self, image, question, region):
        return "rows"

def expert(sample):
    return Mine()

def other(sample):
    return 3
"""


def test_an_expert_of_ones_own(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(EXPERT.replace("CONFIDENCE", "0.9"))
    assert run(tmp_path / "out", questions, expert=f"{file}:expert")["by_right_searches"] == {"0": 4, "6": 2}
    wrong = tmp_path / "wrong.py"
    wrong.write_text(EXPERT.replace("CONFIDENCE", "1.5"))
    for name, message in [
        (f"{wrong}:expert", "error: sample q/0: confidence: got 1.5, expected a number from 0 to 1"),
        (f"{file}:other", f"error: --expert={file}:other: returned int, expected an Expert"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path / "out", questions, "--concurrency=1", expert=name)
        assert stopped.value.code == 2 and capsys.readouterr().err.splitlines()[-1] == message


@pytest.mark.parametrize(
    "change, flags, message",
    [
        ({}, "--expert=annotation", "unknown expert 'annotation', did you mean annotations?"),
        ({}, "--expert=annotations --misses=2", "--misses: got 2.0, expected a share from 0 to 1"),
        ({}, "--expert=annotations --searches=0", "--searches: got 0, expected at least 1"),
        ({}, "--expert=annotations --temperature=nan", "--temperature: got nan"),
        ({}, "--expert=annotations --mass=0", "--mass: got 0.0"),
        ({}, "--expert=annotations --concurrency=0", "--concurrency: got 0"),
        ({}, "--expert=annotations --model=m", "--endpoint and --model need --expert=endpoint"),
        ({}, "--expert=endpoint --model=m", "--expert=endpoint needs --model=NAME and --endpoint=URL"),
        ({}, "--expert=annotations --offline", "sample q/0: the answer to 'a scan' is not kept"),
        ({"boxes": [[0, 0, 130, 20]]}, "--expert=annotations", "sample q/0: boxes: got box (0.0, 0.0, 130.0, 20.0)"),
        ({"other_boxes": 3}, "--expert=annotations", "questions.jsonl:1: other_boxes: got 3, expected boxes"),
        ({"image": "none.png"}, "--expert=annotations", "no question was searched (1 image)"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], flags: str, message: str
) -> None:
    file = write_questions(tmp_path, 1)
    file.write_text(json.dumps(json.loads(file.read_text()) | change) + "\n")
    with pytest.raises(SystemExit) as stopped:
        main([f"--set={file}", f"--output={tmp_path / 'out'}", *flags.split()])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1 and message in errors[0]


def test_questions_that_cannot_be_searched_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_questions(tmp_path, 4)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["image"] = "none.png"
    del rows[1]["image"], rows[1]["boxes"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(tmp_path / "out", file)
    assert report["skipped"] == {"image": 1, "no image": 1} and report["questions"] == 2
    told = capsys.readouterr().err
    assert "none.png: file does not exist" in told and "warning" not in told
    boxless = [{key: value for key, value in row.items() if "boxes" not in key} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in boxless))
    assert run(tmp_path / "out", file)["looks"] == {"0": 12}
    assert "warning: no search looks at a region" in capsys.readouterr().err
