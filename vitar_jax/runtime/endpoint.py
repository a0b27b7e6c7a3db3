"""A client of OpenAI's chat completions API, which vLLM, SGLang and llama.cpp also serve.

Every reply is appended to a cache file under a hash of the request: model, text, image bytes and sampling options. A run
that is stopped and restarted therefore repeats no request.
"""

import base64
import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from PIL import Image
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, NewConnectionError, TimeoutError

from vitar_jax.errors import ConfigError, EndpointError
from vitar_jax.runtime.crash_safe import drop_tail, read_json_lines

Message = Mapping[str, Any]

_RETRY_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_MAX_PAUSE = 600  # seconds; a server may ask for hours


def message(role: str, text: str, images: Sequence[Image.Image] = ()) -> Message:
    """Returns a chat message with the images before the text."""
    if not images:
        return {"role": role, "content": text}
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def data_url(image: Image.Image) -> str:
    """Returns the image as a data URL in PNG, which is lossless."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class ChatClient:
    """A client of one model. Several threads may share a client; only one client may use a cache file at a time.

    `counts` counts outcomes: "answered", "from the cache", and each failed attempt by its kind (see `ask`).

    Args:
      url: Base URL of the API, for example http://127.0.0.1:8000/v1.
      cache: JSON Lines file of the replies.
      options: Additional fields of every request, for example temperature and seed.
      key: Bearer token sent with every request. It is never written to disk.
      concurrency: Maximum number of simultaneous requests.
      timeout: Maximum time to connect, and maximum time between two reads (seconds).
      retries: Maximum number of retries after a timeout, a connection error, a server error (5xx) or status 429.
      pause: Backoff before the first retry (seconds), doubled after each attempt. A Retry-After header overrides it.

    Raises:
      ConfigError: If `url` is not an HTTP URL.
      DataError: If the cache holds an invalid line.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        options: Mapping[str, Any],
        *,
        key: str = "",
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        pause: float = 0.5,
    ):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ConfigError(f"endpoint: got {url!r}, expected a URL like http://127.0.0.1:8000/v1")
        self.model = model
        self.counts: Counter[str] = Counter()
        self._url = url.rstrip("/") + "/chat/completions"
        self._options = dict(options)
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        wait = urllib3.Timeout(connect=timeout, read=timeout)
        self._http = urllib3.PoolManager(maxsize=concurrency, block=True, timeout=wait, retries=False)
        self._retry = urllib3.Retry(
            retries,
            allowed_methods=None,
            backoff_factor=pause,
            backoff_jitter=pause,
            backoff_max=_MAX_PAUSE,
            retry_after_max=_MAX_PAUSE,
        )
        cache.parent.mkdir(parents=True, exist_ok=True)
        drop_tail(cache)
        self._replies = dict(read_json_lines(cache, lambda record: (record["sha256"], str(record["reply"]))))
        self._cache = cache.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._in_flight: dict[str, threading.Lock] = {}

    def close(self) -> None:
        """Closes the connections and the cache file."""
        self._http.clear()
        self._cache.close()

    def ask(self, messages: Sequence[Message], check: Callable[[str], object] = str) -> str:
        """Returns the model's reply to a conversation, from the cache if it is there.

        Args:
          check: Validates a reply. If it raises EndpointError, the reply is not cached.

        Raises:
          EndpointError: If there is no valid reply. `kind` is "timeout", "connection", "rate_limit" or "server_error" (after
            all retries), "bad_request", "no_chat", "empty", "cut_off", "refusal", or the kind that `check` raises.
          ConfigError: If the endpoint rejects the key or does not know the model or the path (401, 403, 404).
        """
        body = json.dumps({"model": self.model, "messages": messages} | self._options, sort_keys=True)
        name = hashlib.sha256(body.encode()).hexdigest()
        with self._lock:
            lock = self._in_flight.setdefault(name, threading.Lock())
        with lock:  # a concurrent identical request waits for this reply
            if name in self._replies:
                self._count("from the cache")
                return self._replies[name]
            try:
                reply = self._answer(self._send(body.encode()))
                check(reply)
            except EndpointError as error:
                self._count(error.kind)
                raise
            self._count("answered")
            line = json.dumps({"sha256": name, "model": self.model, "reply": reply}) + "\n"
            with self._lock:
                self._cache.write(line)
                self._replies[name] = reply
            return reply

    def _send(self, body: bytes) -> urllib3.BaseHTTPResponse:
        """Returns the final response, after retries."""
        retry = self._retry
        while True:
            response, failure = None, None
            try:
                response = self._http.request("POST", self._url, body=body, headers=self._headers)
                if response.status not in _RETRY_STATUSES:
                    return response
                error = self._error(response)
            except HTTPError as raised:
                failure = raised
                unreachable = isinstance(raised, NewConnectionError)  # a subclass of TimeoutError in urllib3
                kind = "timeout" if isinstance(raised, TimeoutError) and not unreachable else "connection"
                error = EndpointError(kind, f"{self._url}: {raised}")
            try:
                retry = retry.increment("POST", self._url, response, failure)
            except MaxRetryError:
                raise error from failure
            self._count(error.kind)
            try:
                retry.sleep(response)
            except InvalidHeader:  # an invalid Retry-After
                retry.sleep()

    def _answer(self, response: urllib3.BaseHTTPResponse) -> str:
        if response.status in (401, 403, 404):
            raise ConfigError(f"{self._error(response)}; check the key, the URL and the model name {self.model!r}")
        if response.status != 200:
            raise self._error(response)
        try:
            choice = json.loads(response.data)["choices"][0]
            answer, reason = choice["message"], choice.get("finish_reason")
            content = answer.get("content") or ""
            refused = bool(answer.get("refusal")) or reason == "content_filter"
            kind = "refusal" if refused else "cut_off" if reason == "length" else "" if content.strip() else "empty"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._error(response, "no_chat") from error
        if kind:
            raise self._error(response, kind)
        return content

    def _error(self, response: urllib3.BaseHTTPResponse, kind: str = "") -> EndpointError:
        status, text = response.status, " ".join(response.data.decode(errors="replace").split())
        by_status = (
            "rate_limit" if status == 429 else "server_error" if status >= 500 or status in _RETRY_STATUSES else "bad_request"
        )
        return EndpointError(kind or by_status, f"{self._url}: status {status}: {text[:300]}")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
