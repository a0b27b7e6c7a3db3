"""Reads the body of a chat completions request, or refuses it in one sentence with a status code."""

import dataclasses
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vitar_jax.errors import VitarError
from vitar_jax.processing.chat import TurnTokens

# Fields that do not affect the reply, and the values at which unsupported fields request nothing.
INERT = {
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "reasoning_effort", "verbosity"),
}
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
_PIXELS = ("min_pixels", "max_pixels")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_STOPS = 4
MAX_OPTIONS = 26  # one per letter
MAX_TOKEN_ID = 2**31 - 1


class RequestError(VitarError):
    """A request that the server refuses.

    Args:
      param: The field of the body that is at fault, or an empty string.
      code: Kind of the error, for programs.
    """

    def __init__(self, status: int, message: str, *, param: str = "", code: str = "invalid_value"):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, Any]:
        """Returns the error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param or None, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of a message: its URL as the client wrote it, and its place in the body."""

    url: str
    place: str


@dataclasses.dataclass(frozen=True)
class ChatMessage:
    role: str
    parts: tuple[str | Picture | TurnTokens, ...]


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """Largest values of a request's fields.

    Attributes:
      tokens: Tokens of the prompt and the reply together.
      images: Images of all messages together.
      choices: Replies to one request.
      pixels: `max_pixels`, the checkpoint's own budget.
    """

    tokens: int
    images: int
    choices: int
    pixels: int


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A chat completions request.

    Attributes:
      max_tokens: Maximum number of tokens per turn. None means the checkpoint's.
      stop: Texts that end the reply, which then ends before them.
      n: Number of replies.
      protocol: Protocol under which a whole episode is played. If empty, the model writes a single reply.
      options: Answers to choose from, in an episode of a protocol.
      store: Whether the server keeps the record of an episode for a while.
      sample_id: Id that the random draws depend on, besides the seed. Offline play of a sample with this id draws the same.
      min_pixels, max_pixels: Pixel budget of an image. None means the checkpoint's.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    temperature: float
    top_p: float
    seed: int
    max_tokens: int | None
    stop: tuple[str, ...]
    n: int
    stream: bool
    include_usage: bool
    logprobs: bool
    return_token_ids: bool
    protocol: str
    options: tuple[str, ...]
    store: bool
    sample_id: str
    min_pixels: int | None
    max_pixels: int | None

    @classmethod
    def read(cls, body: bytes, limits: RequestLimits) -> "ChatRequest":
        """Reads a body.

        `seed` is taken modulo 2**32; without one, it is drawn. `temperature` is 0 unless given, as in `infer`.

        Raises:
          RequestError: If the body is not JSON, a field is unknown or unsupported, or a value is invalid.
        """
        fields = _Fields(_object(body))
        for name in INERT:
            fields.take(name)
        for name, allowed in NEUTRAL.items():
            value = fields.take(name)
            if value is not None and (isinstance(value, bool) or value not in allowed):  # False is not 0
                fields.refuse(name, "is not supported", code="unsupported_parameter")
        nested = fields.object("mm_processor_kwargs", *_PIXELS)  # where vLLM takes them
        stream_options = fields.object("stream_options", "include_usage", "include_obfuscation")
        include_usage, _ = (stream_options.switch(name) for name in ("include_usage", "include_obfuscation"))
        old, new = (fields.whole(name, 1, limits.tokens) for name in ("max_tokens", "max_completion_tokens"))
        outer, inner = ({name: given.whole(name, 1, limits.pixels) for name in _PIXELS} for given in (fields, nested))
        pixels = {name: outer[name] if inner[name] is None else inner[name] for name in _PIXELS}
        stop = fields.take("stop")
        seed = fields.whole("seed", -(2**63), 2**63 - 1)
        request = cls(
            model=fields.text("model", None),
            messages=_messages(fields, limits.images),
            temperature=fields.number("temperature", 0.0, 0.0, 2.0),
            top_p=fields.number("top_p", 1.0, 0.0, 1.0),
            seed=secrets.randbits(32) if seed is None else seed % 2**32,
            max_tokens=old if new is None else new,
            stop=fields.texts("stop", [stop] if isinstance(stop, str) else stop, MAX_STOPS),
            n=fields.whole("n", 1, limits.choices) or 1,
            stream=fields.switch("stream"),
            include_usage=include_usage,
            logprobs=fields.switch("logprobs"),
            return_token_ids=fields.switch("return_token_ids"),
            protocol=fields.text("protocol", ""),
            options=fields.texts("options", fields.take("options"), MAX_OPTIONS),
            store=fields.switch("store"),
            sample_id=fields.text("sample_id", "question"),
            **pixels,
        )
        if fields.rest:
            fields.refuse(next(iter(fields.rest)), "is not a known field", code="unknown_parameter")
        if request.top_p == 0:
            fields.refuse("top_p", "got 0, expected more than 0")
        if request.protocol:
            request._check_episode(fields)
        elif request.options:
            fields.refuse("options", "needs a protocol")
        return request

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, Picture))

    def _check_episode(self, fields: "_Fields") -> None:
        if len(self.messages) != 1:
            fields.refuse("messages", "a protocol plays one question: expected one message of the user")
        for name in ("stop", "logprobs"):
            if getattr(self, name):
                fields.refuse(name, "cannot be combined with a protocol, whose episode may have several turns")


def _object(body: bytes) -> dict[str, Any]:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(body, parse_constant=constant)
        if isinstance(value, dict):
            json.dumps(value, ensure_ascii=False).encode()  # fails for half of a surrogate pair, which is no text
            return value
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON ({error.__class__.__name__})", code="invalid_json") from error
    raise RequestError(400, "the body is not a JSON object", code="invalid_json")


class _Fields:
    """The fields of a body. Each is taken once, and `rest` holds the remaining ones. A null counts as absent."""

    def __init__(self, body: Mapping[str, Any]):
        self.rest = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        return self.rest.pop(name, None)

    def refuse(self, name: str, why: str, *, code: str = "invalid_value") -> NoReturn:
        raise RequestError(400, f"{name[:100]}: {why}", param=name[:100], code=code)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.rest.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isnan(value):
            self.refuse(name, f"expected a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if not _is_whole(value) or not low <= value <= high:
            self.refuse(name, f"expected a whole number from {low} to {high}")
        return int(value)

    def switch(self, name: str) -> bool:
        value = self.rest.pop(name, False)
        if not isinstance(value, bool):
            self.refuse(name, "expected true or false")
        return value

    def object(self, name: str, *keys: str) -> "_Fields":
        """Returns the fields of an object, empty if it is absent."""
        value = self.rest.pop(name, {})
        if not isinstance(value, dict) or value.keys() - {*keys}:
            self.refuse(name, f"expected an object with {' and '.join(keys)}")
        return _Fields(value)

    def text(self, name: str, default: str | None) -> str:
        value = self.rest.pop(name, default)
        if not isinstance(value, str):
            self.refuse(name, "expected a text")
        return value

    def texts(self, name: str, value: Any, most: int) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > most or not all(isinstance(text, str) and text for text in value):
            self.refuse(name, f"expected a list of at most {most} texts that are not empty")
        return tuple(value)


def _is_whole(value: Any) -> bool:
    """Whether JSON Schema calls a value an integer: 2.0 is one, true is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or value.is_integer())


def _messages(fields: _Fields, most_images: int) -> tuple[ChatMessage, ...]:
    given = fields.take("messages")
    if not isinstance(given, list) or not given:
        fields.refuse("messages", "expected a list of messages")
    messages = tuple(_message(fields, f"messages[{number}]", value) for number, value in enumerate(given))
    if messages[-1].role != "user":
        fields.refuse(f"messages[{len(messages) - 1}].role", "expected the last message to be the user's")
    images = sum(isinstance(part, Picture) for message in messages for part in message.parts)
    if images > most_images:
        fields.refuse("messages", f"got {images} images, expected at most {most_images}", code="too_many_images")
    return messages


def _message(fields: _Fields, place: str, value: Any) -> ChatMessage:
    if not isinstance(value, dict):
        fields.refuse(place, "expected an object with role and content")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        fields.refuse(f"{place}.role", f"expected one of {', '.join(_ROLES)}")
    extra = {key for key, given in value.items() if given is not None and given != []} - {"role", "content", "name", "refusal"}
    if role == "assistant" and "token_ids" in extra:
        if extra != {"token_ids"} or not isinstance(content, str | None):
            fields.refuse(place, "expected only a text beside token_ids")
        return ChatMessage(role, (_turn_tokens(fields, f"{place}.token_ids", value["token_ids"]),))
    if extra:
        fields.refuse(f"{place}.{min(extra)}", "is not supported", code="unsupported_parameter")
    if isinstance(content, str):
        return ChatMessage(_ROLES[role], (content,))
    if not isinstance(content, list) or not content:
        fields.refuse(f"{place}.content", "expected a text or a list of parts")
    parts = tuple(_part(fields, f"{place}.content[{number}]", part) for number, part in enumerate(content))
    if role != "user" and any(isinstance(part, Picture) for part in parts):
        fields.refuse(f"{place}.content", "only the user's messages may have images")
    return ChatMessage(_ROLES[role], parts)


def _turn_tokens(fields: _Fields, place: str, value: Any) -> TurnTokens:
    if not isinstance(value, list) or not all(_is_whole(one) and 0 <= one <= MAX_TOKEN_ID for one in value):
        fields.refuse(place, "expected a list of token ids")
    return TurnTokens(tuple(map(int, value)))


def _part(fields: _Fields, place: str, part: Any) -> str | Picture:
    if not isinstance(part, dict):
        fields.refuse(place, "expected an object with type")
    if part.get("type") == "text":
        if not isinstance(part.get("text"), str):
            fields.refuse(f"{place}.text", "expected a text")
        return part["text"]
    if part.get("type") == "image_url":
        image = part.get("image_url")
        if not isinstance(image, dict) or not isinstance(image.get("url"), str):
            fields.refuse(f"{place}.image_url", "expected an object with url")
        return Picture(image["url"], f"{place}.image_url.url")
    fields.refuse(f"{place}.type", "expected text or image_url")
