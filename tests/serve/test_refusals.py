"""What the server refuses, each with its status code and one sentence, and never with a 500."""

import base64
import http.client
import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import urllib3
from PIL import Image

from tests.kit.images import noise
from tests.kit.served import MODEL, Served, load, serving
from vitar_jax.rollout.player import Player

HTTP = urllib3.PoolManager(retries=False)


@pytest.fixture(scope="module")
def player(checkpoint: Path) -> Player:
    return load(checkpoint)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "files"
    folder.mkdir()
    noise(40, 40).save(folder / "inside.png")
    noise(40, 40).save(folder.parent / "outside.png")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    return folder


@pytest.fixture(scope="module")
def served(player: Player, files: Path) -> Iterator[Served]:
    with serving(player, key="opensesame", files=files, image_pixels=10_000, body_bytes=200_000) as running:
        yield running


def post(served: Served, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    given = {"Content-Type": "application/json", "Authorization": "Bearer opensesame"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    response = HTTP.request("POST", f"{served.url}/v1/chat/completions", body=body, headers=given)
    return response.status, json.loads(response.data)


def ask(served: Served, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Which?"}], "max_tokens": 2} | fields
    return post(served, json.dumps(body).encode())


def refused(status: int, body: dict[str, Any], expected: int, text: str) -> None:
    said = body["error"]["message"]
    assert status == expected and text in said and "\n" not in said and len(said) < 1000, (status, said)


def about(url: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_bytes(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


PNG = encoded(noise(40, 40), "PNG")


def claiming(side: int) -> bytes:
    """A PNG whose header claims more pixels than it has, which takes no time to write."""
    header = b"IHDR" + struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


PICTURES = {
    "empty": (of_bytes(b""), "not an image"),
    "text": (of_bytes(b"hello"), "not an image"),
    "damaged": (of_bytes(PNG[: len(PNG) // 2]), "damaged"),
    "no base64": ("data:image/png;base64,@@@", "base64"),
    "huge": (of_bytes(encoded(Image.new("L", (101, 100)), "PNG")), "101x100 pixels"),
    "bomb": (of_bytes(claiming(30_000)), "900000000 pixels"),
    "thin": (of_bytes(encoded(Image.new("L", (1000, 2)), "PNG")), "200 times"),
    **{
        f"animated {kind}": (
            of_bytes(encoded(noise(40, 40), kind, save_all=True, append_images=[noise(40, 40, seed=1)])),
            "2 frames",
        )
        for kind in ("GIF", "PNG", "WEBP", "TIFF")
    },
    "URL": ("http://127.0.0.1/a.png", "fetches no URL"),
    "other scheme": ("gopher://127.0.0.1/a.png", "fetches no URL"),
    "above": ("file://{above}/outside.png", "or a file in"),
    "parent": ("../outside.png", "or a file in"),
    "link": ("link.png", "or a file in"),
    "missing": ("missing.png", "or a file in"),
    "null byte": ("a\0.png", "or a file in"),
    "long": ("a" * 100_000, "or a file in"),
    "nothing": ("", "or a file in"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_an_unusable_picture(served: Served, files: Path, name: str) -> None:
    url, text = PICTURES[name]
    status, body = ask(served, messages=about(url.replace("{above}", str(files.parent))))
    refused(status, body, 400, text)
    assert body["error"]["code"] == "invalid_image" and "outside" not in body["error"]["message"]


@pytest.mark.parametrize("url", ["inside.png", "file://{files}/inside.png", "{files}/inside.png", of_bytes(PNG)])
def test_a_usable_picture(served: Served, files: Path, url: str) -> None:
    status, body = ask(served, messages=about(url.format(files=files) if len(url) < 100 else url))
    assert status == 200 and body["choices"][0]["finish_reason"] in ("stop", "length")


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages: expected a list"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    "tool calls": ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    "last": ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "content[0].type"),
    "system image": ({"messages": [about("x")[0] | {"role": "system"}, *about("inside.png")]}, "only the user's"),
    "images": ({"messages": about("inside.png") * 5}, "5 images, expected at most 2"),
    "url": ({"messages": about(7)}, "image_url: expected"),
    "temperature": ({"temperature": -1}, "temperature: expected a number from 0 to 2"),
    "bool": ({"temperature": True}, "temperature: expected a number"),
    "top_p": ({"top_p": 0}, "top_p"),
    "n": ({"n": 5}, "n: expected a whole number from 1 to 4"),
    "seed": ({"seed": 2**64}, "seed"),
    "max_tokens": ({"max_tokens": 105}, "max_tokens: expected a whole number from 1 to 104"),
    "min_pixels": ({"min_pixels": 5000, "max_pixels": 4000, "messages": about("inside.png")}, "max_pixels: got 4000"),
    "kwargs": ({"mm_processor_kwargs": {"fps": 2}}, "mm_processor_kwargs: expected"),
    "stop": ({"stop": [""]}, "stop"),
    "stops": ({"stop": ["a"] * 5}, "at most 4"),
    "stream": ({"stream": "yes"}, "stream: expected true or false"),
    "tools": ({"tools": [{"type": "function"}]}, "tools: is not supported"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 3}, "top_logprobs: is not supported"),
    "unknown": ({"best_off": 2}, "best_off: is not a known field"),
    "protocol": ({"protocol": "path/to.py:evil"}, "protocol: got 'path/to.py:evil', expected one of"),
    "stop of an episode": ({"protocol": "vitar", "stop": "x"}, "stop: cannot be combined"),
    "options": ({"options": ["a"]}, "options: needs a protocol"),
    "long": ({"messages": [{"role": "user", "content": "lesion " * 200}]}, "expected fewer than 104 tokens"),
    "very long": ({"messages": [{"role": "user", "content": "lesion " * 2000}]}, "expected fewer than 104 tokens"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_an_invalid_field(served: Served, name: str) -> None:
    fields, text = FIELDS[name]
    status, body = ask(served, **fields)
    refused(status, body, 400, text)


NO_JSON = (b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"user": "\\ud800"}', b"9" * 9999)


@pytest.mark.parametrize("body", NO_JSON)
def test_a_body_that_is_no_json_object(served: Served, body: bytes) -> None:
    refused(*post(served, body), 400, "the body is not")


def test_other_limits_have_their_codes(served: Served) -> None:
    refused(*post(served, b" " * 200_001), 413, "the 200000 bytes allowed")
    refused(*post(served, b"{}", Content_Type="text/plain"), 415, "application/json")
    refused(*ask(served, model="other"), 404, "model: got 'other', expected 'micro'")
    for key in ("Bearer opensesam", "", "Bearer öpensesame"):
        refused(*post(served, b"{}", Authorization=key), 401, "no valid key")
    for path, method, expected in (("/v1/models", "GET", 401), ("/metrics", "GET", 401), ("/nowhere", "GET", 404)):
        assert HTTP.request(method, served.url + path).status == expected
    assert HTTP.request("POST", f"{served.url}/health").status == 405
    assert HTTP.request("GET", f"{served.url}/health").status == 200  # without a key
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other")
    assert [model.id for model in served.client.models.list()] == [MODEL]


@contextmanager
def held(player: Player) -> Iterator[threading.Event]:
    """Holds the engine until the event is set."""
    event, step = threading.Event(), player.scheduler.step
    player.scheduler.step = lambda: event.wait() and step()  # type: ignore[method-assign]
    try:
        yield event
    finally:
        event.set()
        del player.scheduler.step


def test_a_full_queue(player: Player) -> None:
    """With one place in the queue and four slots, the sixth of six requests at once is refused."""
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Which?"}], "max_tokens": 2}
    with serving(player, queue=1) as served, held(player) as event:
        streams = [served.client.chat.completions.create(**chat, stream=True) for _ in range(5)]
        with pytest.raises(openai.RateLimitError, match="the queue is full") as caught:
            served.client.chat.completions.create(**chat)
        assert caught.value.response.headers["Retry-After"] == "1"
        event.set()
        assert all(list(stream)[-1].choices[0].finish_reason for stream in streams)
        assert served.client.chat.completions.create(**chat).choices


def test_a_late_body_and_a_late_reply(player: Player) -> None:
    with serving(player, seconds=0.3) as served, held(player):
        refused(*ask(served), 504, "took longer than 0.3 seconds")
        chunks = served.client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Which?"}], stream=True
        )
        with pytest.raises(openai.APIError, match="took longer"):
            list(chunks)
        late = http.client.HTTPConnection(served.url.removeprefix("http://"))
        late.putrequest("POST", "/v1/chat/completions")
        late.putheader("Content-Type", "application/json")
        late.putheader("Content-Length", "100")
        late.endheaders(b"{")
        response = late.getresponse()
        refused(response.status, json.loads(response.read()), 408, "took too long")


def test_an_engine_that_failed_says_so(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that played and those that follow get a 5xx, and whoever started the server hears of it."""
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Which?"}]}
    heard: list[str] = []

    def fail() -> None:
        raise MemoryError("no room")

    with serving(player) as served:
        monkeypatch.setattr(player.scheduler, "step", fail, raising=False)
        served.server.failed = lambda: heard.append("failed")
        with pytest.raises(openai.InternalServerError, match="the engine has failed"):
            served.client.chat.completions.create(**chat)
        refused(*ask(served), 503, "the engine has failed")
        assert HTTP.request("GET", f"{served.url}/health").status == 503 and heard == ["failed"]
