"""A client of models that others serve: OpenAI's chat completions, as vLLM, SGLang and llama.cpp speak them too.

Every answer is appended to a file under a hash of all that was asked: the model, the words, the bytes of the images and how
tokens are drawn. So a run that is killed and started again asks nothing twice.
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
    """One message of a conversation, its images before its text."""
    if not images:
        return {"role": role, "content": text}
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def data_url(image: Image.Image) -> str:
    """The image itself as a URL, losslessly."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class ChatClient:
    """Asks one model. May be used by several threads, and a cache by one client at a time.

    `counts` says what happened so far: "answered", "from the cache", and every attempt that failed, by its kind (see `ask`).

    Args:
      url: where the API begins, say http://127.0.0.1:8000/v1.
      cache: JSONL file of the answers.
      options: further fields of every request, say temperature and seed.
      key: goes with every request as a bearer token; it is written nowhere.
      concurrency: most requests at a time.
      timeout: seconds until a connection is made, and until more is heard over it.
      retries: further attempts after no answer, an error of the server (5xx) or too many requests (429).
      pause: seconds, doubled from attempt to attempt; a server may name others (Retry-After).

    Raises:
      ConfigError: the URL is none.
      DataError: the cache has a line that is none of ours.
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
            raise ConfigError(f"{url!r} is no endpoint; one looks like http://127.0.0.1:8000/v1")
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
        self._asking: dict[str, threading.Lock] = {}

    def close(self) -> None:
        """Lets the connections and the cache go."""
        self._http.clear()
        self._cache.close()

    def ask(self, messages: Sequence[Message], check: Callable[[str], object] = str) -> str:
        """The model's answer, from the cache if it was given before.

        Args:
          check: raises EndpointError where a reply is not what was asked for; then it is not kept.

        Raises:
          EndpointError: there is none, by `kind`: "timeout", "connection", "rate_limit", "server_error" (after all
            retries); "bad_request", "no_chat", "empty", "cut_off", "refusal", or what `check` says.
          ConfigError: the endpoint does not take the key, or knows no such model or address.
        """
        body = json.dumps({"model": self.model, "messages": messages} | self._options, sort_keys=True)
        name = hashlib.sha256(body.encode()).hexdigest()
        with self._lock:
            turn = self._asking.setdefault(name, threading.Lock())
        with turn:  # whoever asks the same at the same time waits for its answer
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
        """What the server says at last."""
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
                nobody = isinstance(raised, NewConnectionError)  # which urllib3 counts among timeouts
                kind = "timeout" if isinstance(raised, TimeoutError) and not nobody else "connection"
                error = EndpointError(kind, f"{self._url}: {raised}")
            try:
                retry = retry.increment("POST", self._url, response, failure)
            except MaxRetryError:
                raise error from failure
            self._count(error.kind)
            try:
                retry.sleep(response)
            except InvalidHeader:  # a Retry-After that says nothing
                retry.sleep()

    def _answer(self, response: urllib3.BaseHTTPResponse) -> str:
        if response.status in (401, 403, 404):
            raise ConfigError(f"{self._error(response)}; the key, or the model {self.model!r}, is not known there")
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
