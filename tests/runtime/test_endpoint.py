"""The client beside a server that fails in every way it can: what is tried again, what is kept, what failures are called."""

import base64
import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit.endpoint import RESET, Reply, in_turn, serving
from tests.kit.images import noise
from vitar_jax.errors import ConfigError, DataError, EndpointError
from vitar_jax.runtime.endpoint import ChatClient, message, request_options

ASKED = [message("user", "Which texture?")]


def client(url: str, directory: Path, **options: Any) -> ChatClient:
    settings: dict[str, Any] = {"pause": 0.01, "retries": 2, "timeout": 5.0} | options
    return ChatClient(url, "a-model", directory / "replies.jsonl", {"temperature": 0.0, "seed": 3}, **settings)


def test_what_is_sent_and_what_comes_back(tmp_path: Path) -> None:
    image = noise(9, 5)
    with serving(in_turn("rows")) as server:
        asked = [message("system", "Be brief."), message("user", "Which texture?", [image])]
        assert client(server.url + "/", tmp_path, key="secret").ask(asked) == "rows"
    (body,), (headers,) = server.asked, server.headers
    assert (body["model"], body["temperature"], body["seed"]) == ("a-model", 0.0, 3)
    assert headers["Authorization"] == "Bearer secret"
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    shown, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "Which texture?"} and shown["type"] == "image_url"
    head, _, data = shown["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(image))
    assert "secret" not in (tmp_path / "replies.jsonl").read_text()


def test_a_field_that_is_none_is_left_out(tmp_path: Path) -> None:
    """Also if an earlier version cached the reply to a request with a null."""
    options = {"temperature": None, "seed": 3, "max_completion_tokens": 9, "nested": {"a": None}}
    with serving(in_turn("rows")) as server:
        one = ChatClient(server.url, "a-model", tmp_path / "replies.jsonl", options)
        assert one.ask(ASKED) == "rows"
        (body,) = server.asked
        assert body.keys() == {"model", "messages", "seed", "max_completion_tokens", "nested"}
        assert body["nested"] == {"a": None}
    sent_with_null = json.dumps({"model": "a-model", "messages": ASKED, **options}, sort_keys=True)
    assert hashlib.sha256(sent_with_null.encode()).hexdigest() in (tmp_path / "replies.jsonl").read_text()


def test_options_of_a_flag() -> None:
    defaults = {"temperature": 0, "seed": 3}
    assert request_options("--request", "{}", defaults) == defaults
    assert request_options("--request", '{"temperature": null, "n": 1}', defaults) == {"temperature": None, "seed": 3, "n": 1}
    for text in ("", "[]", "null", '"a"', "{", '{"model": "m"}', '{"messages": []}', "[" * 100_000):
        with pytest.raises(ConfigError, match="--request: got .*expected a JSON object"):
            request_options("--request", text, defaults)


def test_without_a_key_none_is_sent(tmp_path: Path) -> None:
    with serving(in_turn("rows")) as server:
        client(server.url, tmp_path).ask(ASKED)
    assert "Authorization" not in server.headers[0]


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    """By one client, by the next one, and after a kill in the middle of a line; but of another image it is."""
    with serving(lambda _, number: f"answer {number}") as server:
        first = client(server.url, tmp_path)
        assert [first.ask(ASKED), first.ask(ASKED)] == ["answer 0"] * 2
        assert first.counts == {"answered": 1, "from the cache": 1}
        with (tmp_path / "replies.jsonl").open("a") as file:
            file.write('{"sha256": "torn')
        again = client(server.url, tmp_path)
        assert again.ask(ASKED) == "answer 0"
        pictures = [message("user", "Which?", [noise(4, 4, seed=seed)]) for seed in (1, 2, 1)]
        assert [again.ask([picture]) for picture in pictures] == ["answer 1", "answer 2", "answer 1"]
        other = ChatClient(server.url, "another", tmp_path / "replies.jsonl", {"temperature": 0.0, "seed": 3})
        assert other.ask(ASKED) == "answer 3"
    assert client(server.url, tmp_path).ask(ASKED) == "answer 0"  # the server is gone


def test_who_asks_the_same_at_the_same_time_waits(tmp_path: Path) -> None:
    with serving(lambda _, number: Reply(f"answer {number}", after=0.1)) as server, ThreadPoolExecutor(4) as pool:
        one = client(server.url, tmp_path)
        assert set(pool.map(one.ask, [ASKED] * 4)) == {"answer 0"}
    assert len(server.asked) == 1


def test_so_many_at_a_time(tmp_path: Path) -> None:
    with serving(lambda *_: Reply("yes", after=0.05)) as server, ThreadPoolExecutor(12) as pool:
        one = client(server.url, tmp_path, concurrency=3)
        list(pool.map(one.ask, [[message("user", str(number))] for number in range(12)]))
    assert server.most_at_once == 3


SLOW = Reply("late", after=0.4)


@pytest.mark.parametrize(
    "failure, kind",
    [
        (Reply(status=500), "server_error"),
        (Reply(status=503, headers={"Retry-After": "soon"}), "server_error"),
        *((Reply(status=status), "server_error") for status in (501, 505, 520, 522, 524, 529, 599)),
        (Reply(status=408), "server_error"),
        (Reply(status=429), "rate_limit"),
        (RESET, "connection"),
        (Reply(body=b"half", headers={"Content-Length": "99", "Connection": "close"}), "connection"),
        (SLOW, "timeout"),
    ],
)
def test_a_failure_that_may_pass_is_tried_again(failure: Any, kind: str, tmp_path: Path) -> None:
    with serving(in_turn(failure, failure, "yes", failure)) as server:
        one = client(server.url, tmp_path, timeout=0.2)
        assert one.ask(ASKED) == "yes"
        assert one.counts == {kind: 2, "answered": 1} and len(server.asked) == 3
        with pytest.raises(EndpointError, match=server.url) as caught:
            one.ask([message("user", "Another?")])
        assert caught.value.kind == kind and len(server.asked) == 6
        assert one.counts == {kind: 5, "answered": 1}


REASONS = [
    ({"error": {"message": "Unsupported 'temperature'", "param": "temperature"}}, "400: Unsupported 'temperature'$"),
    ({"object": "error", "message": "max_tokens is too large", "code": 400}, "max_tokens is too large"),
    ({"error": "no such adapter", "error_type": "validation"}, "no such adapter"),
    ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "input": 3}]}, "body.seed: extra_forbidden"),
    ({"detail": [{"loc": ["body", "k"], "msg": "Extra", "input": "x"}, {"msg": "more"}]}, "body.k: Extra; more$"),
    ({"message": {"detail": [{"msg": "bad field"}]}}, "bad field"),
    ([{"error": {"code": 400, "message": "API key not valid", "status": "INVALID"}}], "API key not valid"),
    (b"\n  upstream is busy \nat line 3", "status 400: upstream is busy$"),
    (b"<html><style>b {}</style><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", "502 Bad Gateway$"),
    (b"", "status 400: Bad Request$"),
    (b"[" * 100_000, r"status 400: \[{300}\.\.\.$"),
    ({"error": {"message": "long " * 1000}}, r"status 400: (long ){60}\.\.\.$"),
]


@pytest.mark.parametrize("body, words", REASONS)
def test_the_endpoints_reason_stands_in_the_error(body: Any, words: str, tmp_path: Path) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with serving(in_turn(Reply(status=400, body=content))) as server:
        one = client(server.url, tmp_path)
        with pytest.raises(EndpointError, match=words) as caught:
            one.ask(ASKED)
    assert one.reasons == {"bad_request": str(caught.value)}


@pytest.mark.parametrize("status", [400, 401, 503])
def test_an_error_shows_neither_key_nor_picture(status: int, tmp_path: Path) -> None:
    """Some endpoints repeat the request, with its headers."""
    image = noise(20, 20)
    asked = message("user", "Which?", [image])
    picture = asked["content"][0]["image_url"]["url"]
    for body in ({"error": {"message": f"key sk-12345, {picture}: {picture[22:]}"}}, {"input": [asked, "sk-12345"]}):
        with serving(in_turn(Reply(status=status, body=json.dumps(body).encode()))) as server:
            url = server.url.replace("//", "//me:hidden@")
            with pytest.raises((EndpointError, ConfigError)) as caught:
                client(url, tmp_path, key=" sk-12345\n", retries=0).ask([asked])
        assert server.headers[0]["Authorization"] == "Bearer sk-12345"
        for secret in ("12345", "hidden", picture[30:60]):
            assert secret not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_a_key_that_no_header_holds_is_a_config_error_without_the_key(tmp_path: Path) -> None:
    for key in ("sk-\n1", "sk-\u00e9"):
        with pytest.raises(ConfigError, match="API key has characters") as caught:
            client("http://127.0.0.1:1", tmp_path, key=key)
        assert "sk-" not in str(caught.value)


def test_reasoning_is_no_part_of_a_reply(tmp_path: Path) -> None:
    """It is also not used from a cache that an earlier version wrote."""

    def check(reply: str) -> None:
        if "yes" not in reply:
            raise EndpointError("bad_json", reply)

    with serving(in_turn("<think>no or yes</think>yes", "<think>yes", "<think>yes</think>no", "yes")) as server:
        one = client(server.url, tmp_path)
        assert one.ask(ASKED, check) == "yes"
        for kind in ("empty", "bad_json"):
            with pytest.raises(EndpointError) as caught:
                one.ask([message("user", "Another?")], check)
            assert caught.value.kind == kind
        old = tmp_path / "replies.jsonl"
        old.write_text(old.read_text().replace('"reply": "yes"', '"reply": "<think>yes</think>no"'))
        assert client(server.url, tmp_path).ask(ASKED, check) == "yes"
    assert len(server.asked) == 4


def test_a_reply_in_parts_is_the_text_of_its_parts(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "no"}]}, {"type": "text", "text": "yes"}]
    body = json.dumps({"choices": [{"message": {"content": parts, "reasoning_content": "no"}}]}).encode()
    with serving(in_turn(Reply(body=body))) as server:
        assert client(server.url, tmp_path).ask(ASKED) == "yes"
    body = json.dumps({"choices": [{"message": {"content": None, "reasoning_content": "yes"}}]}).encode()
    with serving(in_turn(Reply(body=body))) as server, pytest.raises(EndpointError, match="empty: .*no text"):
        client(server.url, tmp_path).ask([message("user", "Another?")])


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serving(in_turn("yes")) as server:
        pass
    with pytest.raises(EndpointError) as caught:
        client(server.url, tmp_path).ask(ASKED)
    assert caught.value.kind == "connection"


def test_a_server_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(in_turn(Reply(status=429, headers={"Retry-After": "1"}), "yes")) as server:
        assert client(server.url, tmp_path).ask(ASKED) == "yes"
    assert 1.0 <= server.times[1] - server.times[0] < 3.0


@pytest.mark.parametrize(
    "bad, kind",
    [
        (Reply(body=b"<html>busy</html>"), "no_chat"),
        (Reply(body=b"[" * 100_000), "no_chat"),
        (Reply(body=b'{"choices": []}'), "no_chat"),
        (Reply(body=b'{"choices": [{"message": {"content": ["a"]}}]}'), "no_chat"),
        (Reply(text=""), "empty"),
        (Reply(text=None), "empty"),
        (Reply(text=" \n"), "empty"),
        (Reply(text="half an ans", finish_reason="length"), "cut_off"),
        (Reply(refusal="I will not."), "refusal"),
        (Reply(text="", finish_reason="content_filter"), "refusal"),
        (Reply(status=400, body=b"no images here"), "bad_request"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}), "bad_request"),
        ("unwanted", "bad_json"),
    ],
)
def test_a_bad_answer_is_named_and_not_kept(bad: Any, kind: str, tmp_path: Path) -> None:
    def check(reply: str) -> None:
        if reply == "unwanted":
            raise EndpointError("bad_json", reply)

    with serving(in_turn(bad, "yes")) as server:
        one = client(server.url, tmp_path)
        with pytest.raises(EndpointError) as caught:
            one.ask(ASKED, check)
        assert caught.value.kind == kind and one.counts == {kind: 1}
        assert (tmp_path / "replies.jsonl").read_text() == ""
        assert client(server.url, tmp_path).ask(ASKED, check) == "yes"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run(status: int, tmp_path: Path) -> None:
    with serving(in_turn(Reply(status=status, body=b"who?"))) as server, pytest.raises(ConfigError, match="'a-model'"):
        client(server.url, tmp_path, key="secret").ask(ASKED)
    assert len(server.asked) == 1


def test_what_is_no_endpoint_and_what_is_no_cache(tmp_path: Path) -> None:
    for url in ("127.0.0.1:8000", tmp_path.as_uri(), "http://"):
        with pytest.raises(ConfigError, match="expected a URL"):
            client(url, tmp_path)
    (tmp_path / "replies.jsonl").write_text(json.dumps({"reply": "yes"}) + "\n")
    with pytest.raises(DataError, match="replies.jsonl:1"):
        client("http://127.0.0.1:1", tmp_path)


def test_a_long_wait_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with serving(in_turn(Reply(status=429, headers={"Retry-After": "86400"}), "yes")) as server:
        assert client(server.url, tmp_path).ask(ASKED) == "yes"
    assert max(waited) == 600
