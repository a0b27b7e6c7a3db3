"""Any body is a request or is refused in one sentence."""

import json
from contextlib import suppress
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitar_jax.serve.requests import ChatRequest, RequestError, RequestLimits

LIMITS = RequestLimits(tokens=100, images=2, choices=4, pixels=10_000)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)
KINDS = st.sampled_from(["text", "image_url", "x"])
PARTS = st.fixed_dictionaries({"type": KINDS}, optional={"text": VALUES, "image_url": VALUES})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | VALUES},
        optional={"content": VALUES | st.lists(PARTS, max_size=3), "token_ids": VALUES, "name": VALUES, "tool_calls": VALUES},
    ),
    max_size=3,
)
NAMES = sorted(
    set(get_type_hints(ChatRequest)) - {"model", "messages", "include_usage"}
    | {"stream_options", "max_completion_tokens", "mm_processor_kwargs", "logit_bias", "tools", "top_logprobs", "user"}
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": MESSAGES | VALUES}, optional=dict.fromkeys(NAMES, VALUES)
) | st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@settings(max_examples=100)
@given(BODIES)
def test_any_json_is_read_or_refused(body: Any) -> None:
    with suppress(RequestError):
        request = ChatRequest.read(json.dumps(body).encode(), LIMITS)
        assert 1 <= request.n <= 4 and 0 < request.top_p <= 1 and 0 <= request.seed < 2**32 and request.messages
        assert len(request.pictures) <= 2 and request.messages[-1].role == "user"


@settings(max_examples=100)
@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:0e-\\u\ud800', max_size=40).map(lambda s: s.encode(errors="replace")))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.read(body, LIMITS)
    assert caught.value.status == 400 and "\n" not in str(caught.value)
