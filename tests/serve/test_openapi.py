"""The OpenAPI document says what the server accepts: by an independent validator, and by schemathesis over HTTP."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
import urllib3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.kit.rollout import BLIND
from tests.kit.served import MODEL, Served, load, serving
from vitar_jax.serve.openapi import openapi
from vitar_jax.serve.requests import ChatRequest, RequestError, RequestLimits

LIMITS = RequestLimits(tokens=100, images=2, choices=4, pixels=10_000)
DOCUMENT = openapi(MODEL, ["vitar", "zoom"], LIMITS, key=False)
VALIDATOR = jsonschema_rs.Draft202012Validator({"$ref": "#/components/schemas/ChatRequest", **DOCUMENT})

EDGES: list[Any] = [None, True, False, -1, 0, 1, 1.0, 1.5, 2, 2.5, 4, 5, 26, 100, 101, 10_000, 10_001]
EDGES += [2**31, 2**63 - 1, 2**63, 1e300]
EDGES += ["", "x", "none", "auto", "vitar", "zoom", [], [""], [1], ["text"], *(["x"] * n for n in (1, 4, 5, 26, 27)), {}]
EDGES += [{"type": "text"}, {"type": "json_object"}, {"include_usage": True}, {"include_usage": 1}, {"include_usage": None}]
EDGES += [{"max_pixels": 5}, {"max_pixels": 0}, {"fps": None}]
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
TEXT = {"type": "text", "text": "x"}
PARTS = [[TEXT], [IMAGE], [IMAGE | {"extra": 1}, TEXT], [{"type": "text"}], [IMAGE | {"image_url": {}}]]
CONTENTS = st.sampled_from([*EDGES, *PARTS])
EXTRAS = {name: st.sampled_from(EDGES) for name in ("name", "refusal", "tool_calls")}
TOKENS = st.sampled_from([*EDGES, [0], [2**31 - 1], [2**31], [-1], [True], [1.0], [1.5]])
ROLES = st.sampled_from(["system", "developer", "assistant", "user", "tool", None, 1])
MESSAGES = st.fixed_dictionaries({}, optional={"role": ROLES, "content": CONTENTS, "token_ids": TOKENS, **EXTRAS})
GOOD = st.sampled_from([{"role": "user", "content": "x"}, {"role": "user", "content": [IMAGE]}])
SCHEMAS = DOCUMENT["components"]["schemas"]
OPTIONAL = sorted({*SCHEMAS["ReplyRequest"]["properties"], "unknown"} - {"model", "messages"})
BETWEEN_FIELDS = ("the last message", "images, expected at most", "max_pixels: got", "a token that no turn may have")
BEYOND_SCHEMA = ("invalid_image", "context_length_exceeded")


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Draws a request, most of whose fields are valid, so that single wrong ones decide."""
    several = st.lists(MESSAGES | GOOD, max_size=2).flatmap(lambda first: GOOD.map(lambda last: [*first, last]))
    messages = draw(GOOD.map(lambda one: [one]) | several | st.sampled_from([*EDGES, [None]]))
    chosen = draw(st.lists(st.sampled_from(OPTIONAL), max_size=3, unique=True))
    return {"model": MODEL, "messages": messages, **{name: draw(st.sampled_from(EDGES)) for name in chosen}}


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


def refusal(body: Any) -> str:
    """Returns why a body is refused, or an empty string."""
    try:
        request = ChatRequest.read(json.dumps(body).encode(), LIMITS)
    except RequestError as error:
        return str(error)
    # The server refuses these two later, by the player's own names.
    if request.model != MODEL or request.protocol not in ("", "vitar", "zoom"):
        return "unknown name"
    return ""


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(bodies())
@example({"model": "other", "messages": [{"role": "user", "content": "x"}]})
@example({"model": MODEL})
@example({"model": MODEL, "messages": 3 * [{"role": "user", "content": [IMAGE]}], "n": True})  # two faults
def test_the_schema_and_the_server_accept_the_same_requests(body: Any) -> None:
    why = refusal(body)
    if not any(rule in why for rule in BETWEEN_FIELDS):  # else the body may have another fault too
        assert VALIDATOR.is_valid(body) == (not why), why


@pytest.mark.parametrize("name", OPTIONAL)
def test_every_field_is_described_at_its_edges(name: str) -> None:
    verdicts = set()
    for protocol in ({}, {"protocol": "zoom"}):
        for value in EDGES:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **protocol, name: value}
            valid = VALIDATOR.is_valid(body)
            assert valid == (not refusal(body)), (body, refusal(body))
            verdicts.add(valid)
    assert True in verdicts


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Served]:
    """Serves protocols whose prompts fit into the limits of a small model."""
    with serving(dataclasses.replace(load(checkpoint), protocols={"blind": BLIND, "brief": BLIND}), seconds=60) as running:
        yield running


def test_the_document_is_valid_and_names_what_this_server_has(served: Served) -> None:
    document = json.loads(urllib3.request("GET", f"{served.url}/openapi.json").data)
    schemas = document["components"]["schemas"]
    jsonschema_rs.meta.validate({"$ref": "#/components/schemas/ChatRequest", **document})
    assert schemas["ReplyRequest"]["properties"]["model"] == {"const": MODEL}
    assert schemas["EpisodeRequest"]["properties"]["protocol"]["enum"] == ["blind", "brief"]
    routes = {route.path.replace("{model:path}", "{id}") for route in served.server.app.routes}  # type: ignore[attr-defined]
    assert routes - set(document["paths"]) == {"/", "/page/{name}", "/openapi.json"} and set(document["paths"]) <= routes


def fuzz(served: Served, examples: int) -> Counter[int]:
    """Sends requests that the document allows and others, and checks every answer against the document.

    A request that the document allows may still be refused, for what a schema cannot say.
    """
    statuses: Counter[int] = Counter()
    for found in schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        _ask(operation, GenerationMode.POSITIVE, examples, statuses)
        if operation.path == "/v1/chat/completions":  # the others take nothing, or any bytes
            _ask(operation, GenerationMode.NEGATIVE, examples, statuses)
    return statuses


def _ask(operation: Any, mode: GenerationMode, examples: int, statuses: Counter[int]) -> None:
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call_and_validate(timeout=120, excluded_checks=[positive_data_acceptance])
        statuses[answer.status_code] += 1
        if mode == GenerationMode.POSITIVE and answer.status_code == 400:
            error = answer.json()["error"]
            assert error["code"] in BEYOND_SCHEMA or any(rule in error["message"] for rule in BETWEEN_FIELDS), error

    ask()


@pytest.mark.slow
def test_a_streamed_episode_is_as_described(served: Served) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "protocol": "blind", "stream": True}
    operation = schemathesis.openapi.from_url(f"{served.url}/openapi.json")["/v1/chat/completions"]["POST"]
    answer = operation.Case(body=body, media_type="application/json").call_and_validate(timeout=120)
    *chunks, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    chunk = jsonschema_rs.Draft202012Validator({"$ref": "#/components/schemas/Chunk", **DOCUMENT})
    assert answer.status_code == 200 and done == "[DONE]" and len(chunks) > 2
    for one in chunks:
        chunk.validate(json.loads(one))


@pytest.mark.slow
def test_schemathesis_finds_nothing(served: Served) -> None:
    statuses = fuzz(served, examples=3)
    assert statuses[200] > 3 and statuses[400] > 3, statuses


@pytest.mark.sweep
def test_schemathesis_finds_nothing_in_many_requests(served: Served) -> None:
    statuses = fuzz(served, examples=120)
    assert statuses[200] > 20 and statuses[400] > 200, statuses
