"""The server's OpenAPI document: which requests it accepts, and what it answers.

The schema of a chat request says what `ChatRequest.read` accepts. Its description has the three rules between fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vitar_jax import __version__
from vitar_jax.serve.requests import INERT, MAX_OPTIONS, MAX_STOPS, MAX_TOKEN_ID, NEUTRAL, RequestLimits

Schema = Mapping[str, Any]

_ANY: Schema = {}
_NULL: Schema = {"type": "null"}
_STRING: Schema = {"type": "string"}
_NONE_OR_EMPTY: Schema = {"enum": [None, []]}

_ERRORS = {
    400: "The request is invalid: a field, an image or the length of the prompt.",
    401: "The Authorization header has no valid key.",
    404: "The model, the page or the episode does not exist.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The Content-Type is another one.",
    429: "The queue is full.",
    500: "The server has failed on this request.",
    503: "The engine has failed.",
    504: "The reply took too long.",
}


def openapi(model: str, protocols: Sequence[str], limits: RequestLimits, *, key: bool) -> dict[str, Any]:
    """Returns the document of a server.

    Args:
      key: Whether requests must send an API key.
    """
    chat = _operation(
        "Writes a reply, or plays the episode of a question.",
        {"application/json": _ref("ChatCompletion"), "text/event-stream": _ref("Event")},
        _ERRORS,
        body=("application/json", _ref("ChatRequest")),
    )
    preview = _operation(
        "Opens an image, also one that browsers do not read.",
        {"application/json": _ref("Preview")},
        (400, 401, 408, 413, 415),
        body=("application/octet-stream", {"type": "string", "format": "binary"}),
    )
    zipped = _operation("A kept episode, with its images.", {"application/zip": _STRING}, (404,), open_to_all=True)
    report = _operation("A kept episode as a report.", {"text/html": _STRING}, (404,), open_to_all=True)
    named = [{"name": "id", "in": "path", "required": True, "schema": _STRING}]
    paths = {
        "/v1/chat/completions": {"post": chat},
        "/v1/models": {"get": _operation("The model.", {"application/json": _ref("Models")}, (401,))},
        "/v1/models/{id}": {
            "parameters": named,
            "get": _operation("The model.", {"application/json": _ref("Model")}, (401, 404)),
        },
        "/health": {
            "get": _operation("Whether the engine runs.", {"application/json": _ANY}, (503,), open_to_all=True),
        },
        "/metrics": {"get": _operation("Metrics for Prometheus.", {"text/plain": _STRING}, (401,))},
        "/page/preview": {"post": preview},
        "/episodes/{id}/trajectories.zip": {"parameters": named, "get": zipped},
        "/episodes/{id}/report": {"parameters": named, "get": report},
    }
    components: dict[str, Any] = {"schemas": _schemas(model, protocols, limits)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"vitar_jax: {model}", "version": __version__},
        "paths": paths,
        "components": components,
    }
    if key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _operation(
    summary: str,
    answers: Mapping[str, Schema],
    errors: "Sequence[int] | Mapping[int, str]",
    *,
    body: tuple[str, Schema] | None = None,
    open_to_all: bool = False,
) -> dict[str, Any]:
    error = {"application/json": {"schema": _ref("Error")}}
    answered = {"description": summary, "content": {kind: {"schema": schema} for kind, schema in answers.items()}}
    responses = {"200": answered} | {str(status): {"description": _ERRORS[status], "content": error} for status in errors}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {body[0]: {"schema": body[1]}}}
    return operation | ({"security": []} if open_to_all else {})


def _schemas(model: str, protocols: Sequence[str], limits: RequestLimits) -> dict[str, Any]:
    text = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _STRING}}
    url = {"type": "object", "required": ["url"], "properties": {"url": _STRING}}
    image = {
        "type": "object",
        "required": ["type", "image_url"],
        "properties": {"type": {"const": "image_url"}, "image_url": url},
    }
    tokens = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}}
    common = _fields(model, limits)
    reply = {"protocol": {"enum": ["", None]}, "options": _NONE_OR_EMPTY}
    several = {"type": "array", "minItems": 1, "items": {"anyOf": [_ref("User"), _ref("Other"), _ref("Turn")]}}
    episode = {
        "protocol": {"enum": list(protocols)},
        "options": _or_null({"type": "array", "maxItems": MAX_OPTIONS, "items": {"type": "string", "minLength": 1}}),
        "stop": _NONE_OR_EMPTY,
        "logprobs": {"enum": [None, False]},
    }
    one = {"type": "array", "minItems": 1, "maxItems": 1, "items": _ref("User")}
    requests: dict[str, Any] = {
        "ChatRequest": {
            "anyOf": [_ref("ReplyRequest"), *([_ref("EpisodeRequest")] if protocols else [])],
            "description": f"The last message is the user's. All messages together have at most {limits.images} images. "
            "max_pixels is not below min_pixels.",
        },
        "ReplyRequest": _request(["model", "messages"], common | reply | {"messages": several}),
        "User": _message(["user"], [text, image]),
        "Other": _message(["system", "developer", "assistant"], [text]),
        "Turn": _strict_message({"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}, "token_ids": tokens}),
    }
    if protocols:
        requests["EpisodeRequest"] = _request(["model", "messages", "protocol"], common | episode | {"messages": one})
    return requests | _ANSWERS


def _fields(model: str, limits: RequestLimits) -> dict[str, Any]:
    """Returns the fields that requests for a reply and for an episode share."""
    switch, texts = {"type": "boolean"}, {"type": "string", "minLength": 1}
    pixels = {name: _or_null(_whole(1, limits.pixels)) for name in ("min_pixels", "max_pixels")}
    optional = {
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "seed": _whole(-(2**63), 2**63 - 1),
        "max_tokens": _whole(1, limits.tokens),
        "max_completion_tokens": _whole(1, limits.tokens),
        "stop": {"anyOf": [texts, {"type": "array", "maxItems": MAX_STOPS, "items": texts}]},
        "n": _whole(1, limits.choices),
        "stream": switch,
        "stream_options": _object({name: _or_null(switch) for name in ("include_usage", "include_obfuscation")}),
        "logprobs": switch,
        "return_token_ids": switch,
        "store": switch,
        "sample_id": _STRING,
        "mm_processor_kwargs": _object(pixels),
    }
    neutral = {name: {"enum": [*allowed, None]} for name, allowed in NEUTRAL.items()}
    given = {name: _or_null(schema) for name, schema in optional.items()}
    return {"model": {"const": model}, **given, **pixels, **neutral, **dict.fromkeys(sorted(INERT), _ANY)}


def _request(required: Sequence[str], properties: Mapping[str, Any]) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": _NULL}


def _message(roles: Sequence[str], parts: Sequence[Schema]) -> Schema:
    listed = {"type": "array", "minItems": 1, "items": {"anyOf": list(parts)}}
    return _strict_message({"role": {"enum": list(roles)}, "content": {"anyOf": [_STRING, listed]}}, required=["content"])


def _strict_message(properties: Mapping[str, Any], required: Sequence[str] = ("token_ids",)) -> Schema:
    return {
        "type": "object",
        "required": ["role", *required],
        "properties": {**properties, "name": _ANY, "refusal": _ANY},
        "additionalProperties": _NONE_OR_EMPTY,
    }


def _object(properties: Mapping[str, Any]) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_COUNT: Schema = {"type": "integer", "minimum": 0}
_ANSWERS: dict[str, Any] = {
    "ChatCompletion": {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "object": {"const": "chat.completion"},
            "choices": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["index", "message", "finish_reason"],
                    "properties": {
                        "index": _COUNT,
                        "message": {
                            "type": "object",
                            "required": ["role", "content"],
                            "properties": {"role": {"const": "assistant"}, "content": _STRING},
                        },
                        "finish_reason": {"enum": ["stop", "length"]},
                    },
                },
            },
            "usage": {
                "type": "object",
                "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
                "additionalProperties": _COUNT,
            },
        },
    },
    "Event": {
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {
                "type": "string",
                "description": "A chunk of the reply as JSON, an error as JSON, or [DONE] after the last chunk.",
                "anyOf": [
                    {"const": "[DONE]"},
                    {"contentMediaType": "application/json", "contentSchema": {"anyOf": [_ref("Chunk"), _ref("Error")]}},
                ],
            }
        },
    },
    "Chunk": {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {
            "object": {"const": "chat.completion.chunk"},
            "event": {
                "type": "object",
                "description": "With a protocol: new text of a turn, an ended turn with the image of its tool, or the end.",
                "required": ["type"],
                "properties": {"type": {"enum": ["text", "turn", "end"]}},
            },
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}},
    },
    "Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by", "max_model_len", "protocols", "protocol", "options_only"],
        "properties": {"id": _STRING, "max_model_len": _COUNT, "protocols": {"type": "array", "items": _STRING}},
    },
    "Preview": {
        "type": "object",
        "required": ["width", "height", "image_url"],
        "properties": {
            "width": _COUNT,
            "height": _COUNT,
            "image_url": {"type": "string", "pattern": "^data:image/png;base64,"},
        },
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string", "minLength": 1},
                    "type": {"enum": ["invalid_request_error", "server_error"]},
                    "param": {"type": ["string", "null"]},
                    "code": _STRING,
                },
            }
        },
    },
}
