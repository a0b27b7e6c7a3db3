"""The commands play models that others serve: phantoms are asked, tools run here, and a kill loses no reply."""

import csv
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kit.endpoint import Reply, serving
from tests.kit.errors import Main
from tests.kit.images import noise
from tests.kit.processes import start, until
from vitar_jax import evaluate, infer
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.trajectory_files import read_trajectories

LOOK = write_turn("It is there.", "zoom", box=[[250, 250, 750, 750]])
CASES = '''
from pathlib import Path
from PIL import Image
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.sample import Sample

def cases(split):
    gold = (Box(30, 20, 90, 60, "original"),)
    return [
        Sample(f"case-{index}", f"Is {index} large?", (str(Path(__file__).parent / "case.png"),), "A",
               (("A", "yes"), ("B", "no")), gold)
        for index in range(6)
    ]
'''


@pytest.fixture
def cases(tmp_path: Path) -> str:
    noise(120, 80).save(tmp_path / "case.png")
    (tmp_path / "mine.py").write_text(CASES)
    return f"{tmp_path}/mine.py:cases"


def number(body: dict[str, Any]) -> int:
    found = re.search(r"Is (\d) large", json.dumps(body["messages"]))
    assert found
    return int(found[1])


def replies(body: dict[str, Any], _: int) -> Any:
    """Looks, then answers; is wrong about 1, cannot be asked about 2, and writes no JSON about 3."""
    if number(body) == 2:
        return Reply(status=400, body=b'{"error": {"message": "the picture is too large"}}')
    if number(body) == 3:
        return "It is large."
    if len(body["messages"]) < 3:
        return LOOK
    return write_turn("Now I see.", "Terminate", answer="AB"[number(body) == 1])


@pytest.mark.slow
def test_evaluate(main: Main, capsys: pytest.CaptureFixture[str], cases: str, tmp_path: Path) -> None:
    """Scores, measures of the looks, a control, failures by kind and the report; the phases also work without the endpoint."""
    named = ["--model=vendor/eyes", "--protocol=zoom", f"--workdir={tmp_path}", f"--benchmarks={cases}"]
    with serving(replies) as server:
        asked = [f"--endpoint={server.url}", "--frame=normalized_1000", *named]
        assert main(evaluate, *asked, "--show_images") == 0
        said, requests = capsys.readouterr().out, len(server.asked)
        assert "endpoint: answered 10, bad_request 1" in said and "the picture is too large" in said
        assert "failures: bad_request 1" in said
        assert main(evaluate, *asked) == 0
        assert len(server.asked) == requests + 1  # only what failed is asked again
        capsys.readouterr()
        assert main(evaluate, *asked, "--look=truth", "--phase=predict") == 0
    folder = tmp_path / "evaluation" / "eyes-zoom" / "mine-cases"
    records = {record.sample_id: record for record in read_trajectories(folder)}
    assert sorted(records) == [f"case-{index}" for index in (0, 1, 3, 4, 5)]
    assert records["case-0"].turns[0].boxes_original == ((30.0, 20.0, 90.0, 60.0),)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["samples"] == 6 and scores["measures"]["iou"]["n"] == 5
    rows = csv.DictReader((tmp_path / "evaluation" / "eyes-zoom" / "report" / "episodes.csv").open(encoding="utf-8-sig"))
    assert {row["sample_id"][5:]: float(row["correct"]) for row in rows} == {"0": 1, "1": 0, "3": 0, "4": 1, "5": 1}
    forced = list(read_trajectories(tmp_path / "evaluation" / "eyes-zoom-truth" / "mine-cases"))
    assert {record.turns[0].boxes_original for record in forced} == {((30.0, 20.0, 90.0, 60.0),)}
    assert all(record.turns[0].thought == "I look here." for record in forced)
    assert main(evaluate, *named[:-1], "--phase=score,report") == 0
    assert "mine-cases" in capsys.readouterr().out


@pytest.mark.slow
def test_infer_is_killed_and_asks_nothing_twice(tmp_path: Path) -> None:
    noise(120, 80).save(tmp_path / "case.png")
    lines = [{"id": str(index), "image": "case.png", "question": f"Is {index} large?"} for index in range(6)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    go_on = threading.Event()

    def held(body: dict[str, Any], count: int) -> Any:
        if count >= 6:
            go_on.wait(60)
        return replies(body, count)

    with serving(held) as server:
        command = [sys.executable, "-m", "vitar_jax.infer", f"--endpoint={server.url}", "--model=theirs", "--protocol=zoom"]
        command.append("--frame=normalized_1000")
        command += [f"--input={tmp_path / 'questions.jsonl'}", f"--output={tmp_path / 'answers'}", "--concurrency=2"]
        running = start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kept = tmp_path / "answers" / "replies.jsonl"
        until(lambda: len(server.asked) >= 7 and kept.read_text().count("\n") == 5, running)
        running.send_signal(signal.SIGKILL)
        running.wait()
        go_on.set()
        before = [json.dumps(body) for body in server.asked[:6] if number(body) != 2]
        count = len(server.asked)
        done = start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = done.communicate(timeout=300)
        assert done.returncode == 0, said
        assert not {json.dumps(body) for body in server.asked[count:]} & {*before}
    assert "failures: bad_request 1" in said
    answers = [json.loads(line) for line in (tmp_path / "answers" / "answers.jsonl").read_text().splitlines()]
    assert [answer["predicted_answer"] for answer in answers] == ["A", "B", None, None, "A", "A"]
    assert answers[2]["failure"].startswith("bad_request") and len(answers[0]["looks"]) == 1


def test_one_question(main: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    noise(120, 80).save(tmp_path / "case.png")
    asked = [f"--image={tmp_path / 'case.png'}", "--question=Is 0 large?", f"--output={tmp_path}", "--protocol=zoom"]
    asked.append("--frame=normalized_1000")
    with serving(replies) as server:
        assert main(infer, f"--endpoint={server.url}", "--model=theirs", *asked) == 0
        said = capsys.readouterr().out
        assert "thought: It is there." in said and "answer: A" in said and len(server.asked) == 2


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--protocol=zoom"], "needs --model and --protocol"),
        (["--model=m"], "needs --model and --protocol"),
        (["--model=m", "--protocol=zoom", "--dtype=bfloat16"], "--dtype: only without --endpoint"),
        (["--model=m", "--protocol=nowhere"], "nowhere"),
        (["--model=m", "--protocol=zoom", "--request=7"], "--request: got"),
        (["--model=m", "--protocol=zoom", "--frame=inches"], "--frame"),
    ],
)
def test_wrong_flags(
    main: Main, capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], text: str
) -> None:
    given = ["--endpoint=http://127.0.0.1:1/v1", "--question=Which?", f"--output={tmp_path}", *flags]
    assert main(infer, *given) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1
