"""A protocol as an environment of verifiers, where that package is installed: its agent plays whole episodes."""

import asyncio
import csv
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.kit.endpoint import ChatServer, Reply, serving
from tests.kit.images import noise
from tests.kit.processes import ROOT
from vitar_jax.episodes.parsers import write_turn

ENVIRONMENT = ROOT / "launch" / "vitar_verifiers.py"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("verifiers.v1", reason="verifiers is not among the test packages: it needs another openai")
    monkeypatch.syspath_prepend(ENVIRONMENT.parent)
    monkeypatch.delitem(sys.modules, "vitar_verifiers", raising=False)
    return importlib.import_module("vitar_verifiers")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    noise(120, 100).save(tmp_path / "a.png")
    with (tmp_path / "test.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows(
            [("id", "image", "question", "answer"), ("one", "a.png", "Which?", "rows"), ("two", "a.png", "What?", "flat")]
        )
    return tmp_path / "test.csv"


def answer(body: dict[str, Any], number: int) -> Reply:
    """Looks once and then answers, in the whole form of OpenAI's replies, which verifiers checks."""
    looked = any(message["role"] == "assistant" for message in body["messages"])
    text = write_turn("so", "Terminate", answer="rows") if looked else write_turn("see", "zoom", box=[[10, 10, 60, 60]])
    reply = json.loads(Reply(text).encoded())
    head = {"id": str(number), "object": "chat.completion", "created": 0, "model": body["model"]}
    return Reply(body=json.dumps(head | reply).encode(), headers={"Content-Type": "application/json"})


def run(environment: Any, server: ChatServer) -> list[Any]:
    """Plays each task once."""
    vf: Any = importlib.import_module("verifiers.v1")
    client = vf.EvalClientConfig(base_url=server.url, api_key_var="NO_KEY")
    context = vf.ModelContext(client=client, model="model", sampling=vf.SamplingConfig(temperature=0.5))

    async def play() -> list[Any]:
        async with environment.serving():
            return [await environment.run_slot(vf.env.RunSlot(task), context) for task in environment.taskset]

    return asyncio.run(play())


def test_an_agent_plays_the_protocol_and_is_rewarded(module: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_KEY", "none")
    environment = module.load_environment(str(file), protocol="zoom")
    with serving(answer) as server:
        episodes = run(environment, server)
    for episode, right in zip(episodes, (1.0, 0.0), strict=True):
        (trace,) = episode.traces
        assert not trace.errors and trace.num_turns == 2, trace.errors
        assert {name: reward.value for name, reward in trace.rewards.items()} == {"correct": right}
    assert len(server.asked) == 4 and all(body["temperature"] == 0.5 for body in server.asked)
    shown = [json.dumps(body).count("data:image/png;base64,") for body in server.asked]
    assert shown == [1, 2, 1, 2]  # the tool's image goes back to the model


def test_an_environment_is_short() -> None:
    assert len(ENVIRONMENT.read_text().splitlines()) < 100
