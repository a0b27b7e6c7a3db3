"""Files of questions, killed at any moment and gone on with on any number of processes; and a conversation in a terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.images import dicom, noise
from tests.kit.processes import caching, free_port, simulated, start
from vitar_jax.episodes.trajectory_files import JSONL, file_of, read_records

COUNT = 100


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with the ids 0 to 99: five images, one of them DICOM, one damaged, one missing; one has no room."""
    directory = tmp_path_factory.mktemp("questions")
    for number in range(4):
        noise(120, 100, seed=number).save(directory / f"{number}.png")
    (directory / "4.dcm").write_bytes(dicom(np.asarray(noise(90, 80))))
    (directory / "damaged.png").write_bytes((directory / "0.png").read_bytes()[:500])
    rows = [[str(i), ["0.png", "1.png", "2.png", "3.png", "4.dcm"][i % 5], f"Which texture? {i}"] for i in range(COUNT)]
    rows[3][1], rows[8][1], rows[11][2] = "damaged.png", "missing.png", "why " * 300
    path = directory / "questions.csv"
    path.write_text("id,image,question\n" + "".join(",".join(row) + "\n" for row in rows))
    return path


FAILED = {"3": "ImageError", "8": "ImageError", "11": "TooLongError"}


class Infer:
    """The entry point in processes of its own, on two slots each and one device."""

    def __init__(self, checkpoint: Path, cache: Path):
        self._checkpoint = checkpoint
        self._cache = cache

    def start(self, *arguments: str, processes: int = 1, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vitar_jax.infer", f"--checkpoint={self._checkpoint}", "--temperature=1", *arguments]
        environ = simulated(1) | caching(self._cache)
        if processes > 1:
            environ["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free_port()}"
            command = ["bash", "launch/local.sh", str(processes), *command]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        return start(*command, environ=environ, start_new_session=True, **pipes)

    def __call__(self, *arguments: str, processes: int = 1) -> str:
        """What a run says that nobody kills."""
        with self.start(*arguments, processes=processes) as running:
            said, _ = running.communicate(timeout=300)
        assert running.returncode == 0, said
        return said

    def killed(self, *arguments: str, output: Path, after: int, processes: int = 1) -> None:
        """Kills a run when each of its processes has written so many lines, and, as if in a write, leaves half of one more."""
        files = [output / file_of(process, JSONL) for process in range(processes)]
        before = [lines(file) for file in files]
        with self.start(*arguments, processes=processes) as running:
            while any(lines(file) < n + after for file, n in zip(files, before, strict=True)):
                assert running.poll() is None, running.stdout.read() if running.stdout else ""
                time.sleep(0.001)
            os.killpg(running.pid, signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        for file in files:
            with file.open("ab") as stump:
                stump.write(file.read_bytes()[:500])


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.fixture(scope="module")
def infer(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Infer:
    return Infer(checkpoint, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def undisturbed(infer: Infer, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    said = infer(f"--input={questions}", f"--output={output}", "--slots=2")
    assert "failures: ImageError 2, TooLongError 1" in said and f"{COUNT} of {COUNT} episodes" in said and "tokens/s=" in said
    return output


def answers(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]


def tokens(output: Path) -> dict[str, list[int]]:
    """What was written for each question; each is there once."""
    records = list(read_records(output))
    written = {record["sample_id"]: record["token_ids"] for record in records}
    assert len(written) == len(records)
    return written


@pytest.mark.slow
def test_every_question_is_answered_or_counted(undisturbed: Path) -> None:
    found = answers(undisturbed)
    assert [answer["id"] for answer in found] == [str(i) for i in range(COUNT)]
    failed = {answer["id"]: answer["failure"].split(":")[0] for answer in found if answer["failure"]}
    assert failed == FAILED
    assert all((answer["end_reason"] is None) == (answer["id"] in failed) for answer in found)
    assert tokens(undisturbed).keys() == {answer["id"] for answer in found} - FAILED.keys()
    assert {record["images"][0]["sha256"] for record in read_records(undisturbed)} == {
        path.stem for path in (undisturbed / "images").iterdir()
    }


@pytest.mark.slow
def test_a_run_is_killed_and_goes_on(infer: Infer, questions: Path, undisturbed: Path, tmp_path: Path) -> None:
    """On one process, on two, on one again; on two it comes to its end."""
    arguments = [f"--input={questions}", f"--output={tmp_path}", "--slots=2"]
    written = 0
    for after, processes in ((1, 1), (2, 2), (4, 1)):
        infer.killed(*arguments, output=tmp_path, after=after, processes=processes)
        written += after * processes
        assert written <= len(tokens(tmp_path)) < COUNT - len(FAILED)
    said = infer(*arguments, processes=2)
    assert said.count("failures: ImageError 2, TooLongError 1") == 1
    assert tokens(tmp_path) == tokens(undisturbed) and answers(tmp_path) == answers(undisturbed)


@pytest.mark.slow
def test_a_conversation(infer: Infer, questions: Path, tmp_path: Path) -> None:
    """Typed into a terminal: a missing image, another, a question, and one after it."""
    ours, theirs = pty.openpty()
    with infer.start("--interactive", f"--output={tmp_path}", "--protocol=plain", stdin=theirs) as running:
        image = questions.parent / "0.png"
        os.write(ours, f"/image nowhere.png\nWhich?\n/image {image}\nWhich texture?\nIs it?\n\n".encode())
        said, _ = running.communicate(timeout=300)
    os.close(ours)
    os.close(theirs)
    assert running.returncode == 0, said
    assert said.count("nowhere.png: file does not exist") == 1 and said.count("answer: ") == 2, said
