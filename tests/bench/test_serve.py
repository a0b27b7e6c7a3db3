"""The bench of the server: its clients read replies as they are, and a small run times both servers and the player."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.kit.endpoint import ChatServer, Reply, serving
from tests.kit.served import MODEL, load
from tests.kit.served import serving as serving_ours
from vitar_jax.bench import serve
from vitar_jax.bench.pairs import Disagreement
from vitar_jax.bench.serve import Endpoint, bodies, samples
from vitar_jax.errors import ConfigError


def streamed(*events: Any) -> Reply:
    return Reply(body="".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n")


def said(**delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def endpoint(server: ChatServer) -> Endpoint:
    return Endpoint("double", server.url.removesuffix("/v1"), "m")


def test_clients_count_tokens_and_wait_for_text() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    with serving(lambda *_: streamed(said(role="assistant", content=""), said(content="a"), usage)) as server:
        replies = endpoint(server).send(bodies(samples(5), 7, protocol="zoom"), clients=2)
        assert server.most_at_once <= 2 and len(server.asked) == 5
    assert len(replies.first) == 5 and all(0 < first < 60 for first in replies.first)
    assert (replies.prompt, replies.completion) == (25, 10)
    for body in server.asked:
        assert (body["model"], body["max_tokens"], body["protocol"], body["stream"]) == ("m", 7, "zoom", True)
        assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize("reply", [Reply(status=500, body=b"data: {}\n"), streamed(said(content="a")), Reply("whole")])
def test_a_reply_that_is_not_whole_ends_the_bench(reply: Reply) -> None:
    broken = Reply(status=reply.status, body=reply.encoded().replace(b"data: {}", b"no"))
    with serving(lambda *_: broken) as server, pytest.raises(RuntimeError, match="double: got no whole reply"):
        endpoint(server).send(bodies(samples(1), 7), clients=1)


def test_a_server_that_does_not_start_is_named() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such weights')"]
    with pytest.raises(ConfigError, match="mine: did not start.*no such weights"), serve.running("mine", "m", command, 1):
        pass


@pytest.fixture
def started(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Has our server in this process, and yields the commands of the processes that were started."""
    commands: list[str] = []
    start = subprocess.Popen
    monkeypatch.setattr(serve.subprocess, "Popen", lambda command, **how: commands.append(command[2]) or start(command, **how))
    with serving_ours(load(checkpoint)) as ours:
        monkeypatch.setattr(serve, "start_ours", lambda *_: nullcontext(Endpoint("vitar_jax.serve", ours.url, MODEL)))
        yield commands


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_servers_and_player_are_timed(checkpoint: Path, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "why_not_transformers_serve", lambda _: "it is replaced here")
    lines: list[str] = []
    how: dict[str, Any] = {"count": 2, "tokens": 3, "threads": 1, "rounds": 1, "say": lines.append}
    rows, facts = serve.measure(checkpoint, clients=[2], **how)
    assert started == ["vitar_jax.bench.generate_server"] and "it is replaced here" in lines[0]
    assert [(row.pair.name, row.pair.peer_settings) for row in rows] == [
        ("requests, 2 clients", "generate server"),
        ("requests, 2 clients", "offline player"),
        ("episodes, 2 clients", "offline player"),
    ]
    assert all(row.ours_seconds[0] > 0 and row.peer_seconds[0] > 0 for row in rows)
    assert len(serve.text(facts)) == 2 and all("3.0 tokens" in line for line in serve.text(facts))


def test_servers_that_make_other_prompts_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for start in ("start_ours", "start_peer"):
        monkeypatch.setattr(serve, start, lambda *_, name=start: nullcontext(Endpoint(name, "", "")))
    lengths = {"start_ours": 19, "start_peer": 8}
    monkeypatch.setattr(Endpoint, "send", lambda side, *_: serve.Replies((0.1,), lengths[side.name], 3))
    with pytest.raises(Disagreement, match="got a prompt of 19 tokens, expected the peer's 8"):
        serve.measure(Path("x"), clients=[2], count=1, tokens=1, threads=1, rounds=1, say=print)
