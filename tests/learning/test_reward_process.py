"""A user's reward in processes of its own: same values, same failures, an end at the timeout, and signals meanwhile."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kit.answered import BOX, GARBAGE, IMAGE, OUTSIDE, RIGHT, play
from tests.kit.images import noise
from tests.kit.processes import run, start
from vitar_jax.episodes.parsers import write_turn
from vitar_jax.episodes.regions import Box
from vitar_jax.episodes.trajectory import Trajectory
from vitar_jax.learning.reward_process import _decode, _encode
from vitar_jax.learning.rewards import RewardConfig, Rewards

FUNCTION = '''
import ctypes, json, os, re, signal, sys, time, zlib

def case(trajectory):
    what = trajectory.metadata.get("what")
    if what == "regex":
        return {"a": bool(re.match(r"^(a+)+$", "a" * 40 + "!"))}
    if what == "integers":
        return {"a": pow(7**20000, 7**20000, 7**20001 + 1)}
    if what == "sleep":
        time.sleep(60)
    if what == "raise":
        raise ValueError("no reward")
    if what == "timeout error":
        raise TimeoutError("of its own")
    if what == "exit":
        sys.exit(1)
    if what == "end":
        os._exit(0)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "huge":
        return {"a": 10**400}
    if what == "parts":
        return {"b": 1.0}
    if what == "number":
        return {1: 1.0}
    if what == "nan":
        return {"a": float("nan")}
    if what == "print":
        print("said by a reward", flush=True)
    if what == "pid":
        return {"a": os.getpid()}
    if what == "jax":
        return {"a": "jax" in sys.modules}
    pixels = [zlib.crc32(image.pixels.tobytes()) for image in trajectory.images]
    return {"a": zlib.crc32(json.dumps([trajectory.to_json(), pixels]).encode())}
'''


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[float, str | None]]:
    """Returns reward and failure of an episode with `what` in its metadata."""
    path = tmp_path_factory.mktemp("mine") / "own.py"
    path.write_text(FUNCTION)
    both = {t: Rewards({"mine": RewardConfig(f"{path}:case", {"a": 1.0}, timeout=t)}) for t in (0.3, 60.0)}
    played = play(BOX, RIGHT)

    def of(what: str, timeout: float = 60.0) -> tuple[float, str | None]:
        scored, failure = both[timeout](dataclasses.replace(played, metadata={"what": what}))
        return scored.reward, failure

    of("pid", 0.3)
    return of


@pytest.mark.slow
@pytest.mark.parametrize("what", ["regex", "integers", "sleep"])
def test_a_function_that_hangs_ends_at_its_timeout(what: str, score: Callable[..., tuple[float, str | None]]) -> None:
    before = score("pid", 0.3)
    began = time.perf_counter()
    assert score(what, 0.3)[1] == "timeout"
    assert 0.3 <= time.perf_counter() - began < 2
    with pytest.raises(ProcessLookupError):
        os.kill(int(before[0]), 0)
    after = score("pid", 0.3)
    assert after[1] is None and after != before  # another process goes on


def test_signals_are_handled_meanwhile(score: Callable[..., tuple[float, str | None]]) -> None:
    heard: list[float] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(time.perf_counter()))
    began = time.perf_counter()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        assert score("regex", 0.3)[1] == "timeout"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard and heard[0] - began < 0.25


@pytest.mark.parametrize(
    "what, failure",
    [
        ("raise", "exception"),
        ("timeout error", "exception"),
        ("exit", "exception"),
        ("end", "exception"),
        ("crash", "exception"),
        ("huge", "exception"),
        ("parts", "wrong_parts"),
        ("number", "wrong_parts"),
        ("nan", "not_finite"),
        ("print", None),
    ],
)
def test_failures_are_those_of_a_thread(what: str, failure: str | None, score: Callable[..., tuple[float, str | None]]) -> None:
    assert score(what)[1] == failure
    assert score("pid")[1] is None


def test_a_process_is_used_again_and_imports_no_jax(score: Callable[..., tuple[float, str | None]]) -> None:
    assert score("pid") == score("pid") != (float(os.getpid()), None)
    assert score("jax") == (0.0, None)


def test_a_function_that_hangs_does_not_touch_the_others(score: Callable[..., tuple[float, str | None]]) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda what: score(what, 0.3)[1], ["regex", "pid", "pid", "sleep", "pid"]))
    assert found == ["timeout", None, None, "timeout", None]


def test_a_function_sees_the_same_record(score: Callable[..., tuple[float, str | None]]) -> None:
    played = dataclasses.replace(play(BOX, RIGHT), metadata={"what": "seen"})
    seen = json.dumps([played.to_json(), [zlib.crc32(image.pixels.tobytes()) for image in played.images]])
    assert score("seen") == (zlib.crc32(seen.encode()), None)


BOXES = (Box(28, 14, 84, 70, "original"),)
EPISODES = [
    play(BOX, RIGHT, boxes=BOXES),
    play(OUTSIDE, RIGHT),
    play(GARBAGE, GARBAGE, images=(noise(140, 168).convert("L"),)),
    play(write_turn("spot", "zoom", box=[[28, 14, 84, 70]], image=1), RIGHT, images=(IMAGE, noise(140, 168))),
    dataclasses.replace(play(RIGHT), rewards={"a": 0.1}, advantage=float("-inf"), metadata={"é": [1, None, {"b": "\ud800"}]}),
]


@pytest.mark.parametrize("number", range(len(EPISODES)))
def test_a_record_is_the_same_on_the_other_side(number: int) -> None:
    played = EPISODES[number]
    assert _decode(_encode(played, 3.5)) == (played, 3.5)


SCRIPT = '''
import math
import sys
from pathlib import Path

from tests.kit.trajectories import make_trajectory
from vitar_jax.learning.rewards import RewardConfig, Rewards, reward

BASE = 40
with open(sys.argv[1], "a") as file:
    file.write("once\\n")

def half(number):
    return BASE / 2

@reward("mine", a=1.0, pid=1.0)
def mine(trajectory):
    import os
    return {"a": math.floor(half(3)) + LATER, "pid": os.getpid()}

LATER = 1
if GUARD:
    import os
    scored, failure = Rewards({"mine": RewardConfig("mine")})(make_trajectory())
    print(failure, scored.rewards["a"], scored.rewards["pid"] != os.getpid())
'''


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["True", '__name__ == "__main__"'])
def test_a_running_script_is_not_run_again(guard: str, tmp_path: Path) -> None:
    """A process gets a copy of its function, and of what the function uses."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("GUARD", guard))
    done = run(sys.executable, str(tmp_path / "script.py"), str(tmp_path / "runs"), environ={"PYTHONPATH": "."})
    assert done.stdout == "None 21.0 True\n", done.stderr
    assert (tmp_path / "runs").read_text() == "once\n"


def test_a_script_that_uses_what_cannot_be_copied_falls_back_to_a_thread(tmp_path: Path) -> None:
    changed = SCRIPT.replace("LATER = 1", "LATER = 1\nimport threading\nLOCK = threading.Lock()").replace("GUARD", "True")
    changed = changed.replace("    import os\n    return", "    import os\n    LOCK.locked()\n    return")
    (tmp_path / "script.py").write_text(changed)
    done = run(sys.executable, str(tmp_path / "script.py"), str(tmp_path / "runs"), environ={"PYTHONPATH": "."})
    assert done.stdout == "None 21.0 False\n", done.stderr
    assert "It runs in a thread" in done.stderr and "uses something that cannot be copied" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pid", "regex"])
def test_no_process_outlives_a_killed_program(what: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FUNCTION.replace("def case(trajectory):\n", "def case(trajectory):\n    TELL\n"))
    tell = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + '.')"
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("TELL", tell))
    code = f"""
import dataclasses, time
from tests.kit.trajectories import make_trajectory
from vitar_jax.learning.rewards import RewardConfig, Rewards
rewards = Rewards({{"mine": RewardConfig("{tmp_path}/own.py:case", {{"a": 1.0}}, timeout=3)}})
rewards(dataclasses.replace(make_trajectory(), metadata={{"what": {what!r}}}))
time.sleep(60)
"""
    with start(sys.executable, "-c", code, stdout=subprocess.DEVNULL) as program:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("."):
            time.sleep(0.1)
        program.kill()
    process = int((tmp_path / "pid").read_text()[:-1])
    until = time.monotonic() + 15
    while (stat := Path(f"/proc/{process}/stat")).exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_packages_own_rewards_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(threading, "Thread", None)
    scored, failure = Rewards({"vitar": RewardConfig("vitar")})(play(BOX, RIGHT))
    assert failure is None and isinstance(scored, Trajectory) and scored.reward == pytest.approx(1.4)
