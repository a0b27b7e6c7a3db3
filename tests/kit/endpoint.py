"""An endpoint for tests: a local server that gives prepared answers and records all requests."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RESET = object()  # an answer that resets the connection


@dataclass
class Reply:
    """A reply of the server; `text` is the text of the model."""

    text: str | None = None
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    refusal: str | None = None
    after: float = 0.0  # delay, in seconds

    def encoded(self) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}]}).encode()


class ChatServer:
    """A chat server.

    Args:
      answer: Function from the body of a request and the number of earlier requests to a `Reply`, a text, or `RESET`.
    """

    def __init__(self, answer: Callable[[dict[str, Any], int], Any]):
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._now, self._lock = 0, threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                with server._lock:
                    number = len(server.asked)
                    server.asked.append(body)
                    server.headers.append(dict(self.headers))
                    server.times.append(time.monotonic())
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    self.reply(answer(body, number))
                except BrokenPipeError:  # the client has disconnected
                    self.close_connection = True
                finally:
                    with server._lock:
                        server._now -= 1

            def reply(self, reply: Any) -> None:
                if reply is RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    self.rfile = self.wfile = open("/dev/null", "r+b", buffering=0)
                    return
                reply = Reply(reply) if isinstance(reply, str) else reply
                time.sleep(reply.after)
                content = reply.encoded()
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Any]) -> Iterator[ChatServer]:
    """Yields a server that runs until the end of the `with` block."""
    server = ChatServer(answer)
    thread = threading.Thread(target=server._server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()
        thread.join()


def in_turn(*replies: Any) -> Callable[[dict[str, Any], int], Any]:
    """Returns an `answer` that gives the replies in order, and then repeats the last one."""
    return lambda _, number: replies[min(number, len(replies) - 1)]
