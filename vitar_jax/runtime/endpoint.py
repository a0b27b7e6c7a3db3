"""A client of OpenAI's chat completions API, which vLLM, SGLang and llama.cpp also serve.

Every reply is appended to a cache file under a hash of the request: model, text, image bytes and sampling options. A run
that is stopped and restarted therefore repeats no request.
"""

import base64
import dataclasses
import hashlib
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3
from PIL import Image
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, NewConnectionError, TimeoutError

from vitar_jax.errors import ConfigError, EndpointError, without_pictures
from vitar_jax.runtime.crash_safe import drop_tail, read_json_lines
from vitar_jax.runtime.replies import failure_reason, message_text, without_reasoning

Message = Mapping[str, Any]
T = TypeVar("T")

_RETRY_STATUSES = (408, 425, 429)  # and every server error
_MAX_PAUSE = 600  # seconds; a server may ask for hours
_LONGEST_REASON = 300  # characters


def message(role: str, text: str, images: Sequence[Image.Image | str] = ()) -> Message:
    """Returns a chat message with the images, or their data URLs, before the text."""
    if not images:
        return {"role": role, "content": text}
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    return {"role": role, "content": [*map(image_part, urls), {"type": "text", "text": text}]}


def image_part(url: str) -> dict[str, Any]:
    """Returns the part of a message that holds an image."""
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(image: Image.Image) -> str:
    """Returns the image as a data URL in PNG, which is lossless."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def request_options(flag: str, text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `defaults` updated by the JSON object in a flag. A null is kept; `ChatClient` leaves its field out of requests.

    Raises:
      ConfigError: If the text is not a JSON object, or sets the model or the messages.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{flag}: got {text!r}, expected a JSON object ({error})") from error
    if not isinstance(given, dict) or {"model", "messages"} & given.keys():
        raise ConfigError(f"{flag}: got {text!r}, expected a JSON object without model and messages")
    return {**defaults, **given}


@dataclasses.dataclass(frozen=True)
class Completion:
    """An unprocessed reply of the endpoint.

    Attributes:
      text: Its content, including reasoning that the endpoint leaves in the content.
      whole: Whether the model ended it. If not, it reached its limit of tokens.
      token_ids, logprobs: Its tokens, with the one that ended it, and their log-probabilities. Empty if not given.
      prompt_token_ids: Tokens of the conversation before it. Empty if not given.
    """

    text: str
    whole: bool = True
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Completion":
        """Reads the body of a response. Raises LookupError, TypeError, ValueError or AttributeError if it is malformed."""
        choice = body["choices"][0]
        entries = (choice.get("logprobs") or {}).get("content") or ()
        return cls(
            message_text(choice["message"]),
            choice.get("finish_reason") != "length",
            tuple(map(int, choice.get("token_ids") or ())),
            tuple(float(entry["logprob"]) for entry in entries),
            tuple(map(int, body.get("prompt_token_ids") or ())),
        )


_TOKENS = ("token_ids", "logprobs", "prompt_token_ids")


def _read_record(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the hash of a request and its record in the cache."""
    return record["sha256"], {**record, "reply": str(record["reply"])}


class ChatClient:
    """A client of one model. Several threads may share a client; only one client may use a cache file at a time.

    Attributes:
      options: Additional fields of every request.
      counts: Number of outcomes: "answered", "from the cache", and each failed attempt by its kind (see `ask`).
      reasons: The message of the last failure of each kind.

    Args:
      url: Base URL of the API, for example http://127.0.0.1:8000/v1.
      cache: JSON Lines file of the replies.
      options: Additional fields of every request, for example temperature and seed. A field that is None is left out.
      key: Bearer token sent with every request. It is never written to disk, and error messages do not show it.
      concurrency: Maximum number of simultaneous requests.
      timeout: Maximum time to connect, and maximum time between two reads (seconds).
      retries: Maximum number of retries after a timeout, a connection error, a server error (5xx) or status 429.
      pause: Backoff before the first retry (seconds), doubled after each attempt. A Retry-After header overrides it.

    Raises:
      ConfigError: If `url` is not an HTTP URL, or the key cannot stand in a header.
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
        key = key.strip()  # often read from a file that ends in a line break
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("endpoint: the API key has characters that a header cannot hold; check its environment variable")
        self.model, self.options = model, dict(options)
        self.counts: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}
        self._url = url.rstrip("/") + "/chat/completions"
        self._place = re.sub(r"(?<=//)[^/]*@", "", self._url)  # without a user's name and password
        self._key = key
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
        self._replies = dict(read_json_lines(cache, _read_record))
        self._cache = cache.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()
        self._in_flight: dict[str, threading.Lock] = {}

    def close(self) -> None:
        """Closes the connections and the cache file."""
        self._http.clear()
        self._cache.close()

    def ask(self, messages: Sequence[Message], check: Callable[[str], object] = str) -> str:
        """Returns the model's reply to a conversation without its reasoning, from the cache if it is there.

        Args:
          check: Validates a reply. If it raises EndpointError, the reply is not cached, and a cached reply is not used.

        Raises:
          EndpointError: If there is no valid reply. `kind` is "timeout", "connection", "rate_limit" or "server_error" (after
            all retries), "bad_request", "no_chat", "empty", "cut_off", "refusal", or the kind that `check` raises.
          ConfigError: If the endpoint rejects the key or does not know the model or the path (401, 403, 404).
        """

        def kept(record: Mapping[str, Any]) -> str | None:
            cached = without_reasoning(record["reply"])
            if cached.strip():
                with suppress(EndpointError):
                    check(cached)
                    return cached
            return None

        def new(response: urllib3.BaseHTTPResponse) -> tuple[str, dict[str, Any]]:
            reply = self._answer(response)
            check(reply)
            return reply, {"reply": reply}

        return self._once({"messages": messages}, kept, new)

    def complete(self, messages: Sequence[Message], **options: Any) -> Completion:
        """Returns the model's reply to a conversation as it is, even if it is empty or cut off, from the cache if it is there.

        Args:
          options: Further fields of this request.

        Raises:
          EndpointError, ConfigError: As `ask`, but never "empty" or "cut_off".
        """

        def kept(record: Mapping[str, Any]) -> Completion | None:
            kept = record["completion"]
            return Completion(kept["text"], kept["whole"], *(tuple(kept[name]) for name in _TOKENS))

        def new(response: urllib3.BaseHTTPResponse) -> tuple[Completion, dict[str, Any]]:
            self._choice(response)
            try:
                completion = Completion.of(json.loads(response.data))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._error(response, "no_chat") from error
            return completion, {"reply": completion.text, "completion": dataclasses.asdict(completion)}

        return self._once({"messages": messages, "purpose": "complete"} | options, kept, new)

    def _once(
        self,
        fields: Mapping[str, Any],
        kept: Callable[[Mapping[str, Any]], T | None],
        new: Callable[[urllib3.BaseHTTPResponse], tuple[T, dict[str, Any]]],
    ) -> T:
        """Returns what `kept` reads from the cached record of a request, or else sends it.

        Args:
          new: Returns the result and the record that is cached, given the response.
        """
        fields = {"model": self.model} | self.options | dict(fields)
        # A field that is left out stays in the key, under which earlier versions cached the reply to a null.
        name = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        sent = {key: value for key, value in fields.items() if value is not None and key != "purpose"}
        body = json.dumps(sent, sort_keys=True).encode()
        with self._lock:
            lock = self._in_flight.setdefault(name, threading.Lock())
        with lock:  # a concurrent identical request waits for this reply
            if name in self._replies and (found := kept(self._replies[name])) is not None:
                self._count("from the cache")
                return found
            try:
                result, record = new(self._send(body))
            except EndpointError as error:
                self._count(error.kind, str(error))
                raise
            self._count("answered")
            line = json.dumps({"sha256": name, "model": self.model, **record}) + "\n"
            with self._lock:
                self._cache.write(line)
                self._replies[name] = record
            return result

    def _send(self, body: bytes) -> urllib3.BaseHTTPResponse:
        """Returns the final response, after retries."""
        retry = self._retry
        while True:
            response, failure = None, None
            try:
                response = self._http.request("POST", self._url, body=body, headers=self._headers)
                if response.status < 500 and response.status not in _RETRY_STATUSES:
                    return response
                error = self._error(response)
            except HTTPError as raised:
                failure = raised
                unreachable = isinstance(raised, NewConnectionError)  # a subclass of TimeoutError in urllib3
                kind = "timeout" if isinstance(raised, TimeoutError) and not unreachable else "connection"
                error = EndpointError(kind, f"{self._place}: {self._fit(str(raised))}")
            try:
                retry = retry.increment("POST", self._url, response, failure)
            except MaxRetryError:
                raise error from failure
            self._count(error.kind, str(error))
            try:
                retry.sleep(response)
            except InvalidHeader:  # an invalid Retry-After
                retry.sleep()

    def _answer(self, response: urllib3.BaseHTTPResponse) -> str:
        """Returns the text of a whole reply without its reasoning."""
        text, reason = self._choice(response)
        reply = without_reasoning(text)
        if reason == "length":
            raise self._error(response, "cut_off", "the reply reached its limit of tokens")
        if not reply.strip():
            raise self._error(response, "empty", "the reply has no text besides the model's reasoning")
        return reply

    def _choice(self, response: urllib3.BaseHTTPResponse) -> tuple[str, Any]:
        """Returns the text of a reply, and the reason of its end."""
        if response.status in (401, 403, 404):
            raise ConfigError(f"{self._error(response)}; check the key, the URL and the model name {self.model!r}")
        if response.status != 200:
            raise self._error(response)
        try:
            choice = json.loads(response.data)["choices"][0]
            answer, reason = choice["message"], choice.get("finish_reason")
            text = message_text(answer)
            refusal = answer.get("refusal") or ("its content filter stopped the reply" if reason == "content_filter" else "")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._error(response, "no_chat") from error
        if refusal:
            raise self._error(response, "refusal", str(refusal))
        return text, reason

    def _error(self, response: urllib3.BaseHTTPResponse, kind: str = "", reason: str = "") -> EndpointError:
        status = response.status
        by_status = (
            "rate_limit" if status == 429 else "server_error" if status >= 500 or status in _RETRY_STATUSES else "bad_request"
        )
        reason = reason or failure_reason(response.data.decode(errors="replace")) or response.reason or ""
        return EndpointError(kind or by_status, f"{self._place}: status {status}: {self._fit(reason)}")

    def _fit(self, reason: str) -> str:
        """Returns a reason as one line of bounded length, without the key."""
        line = " ".join(without_pictures(reason.replace(self._key, "[key]") if self._key else reason).split())
        return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."

    def _count(self, what: str, reason: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            if reason:
                self.reasons[what] = reason
