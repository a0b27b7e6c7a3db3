"""Errors for users: no message shows a picture."""

import base64

import pytest

from vitar_jax.errors import DataError, EndpointError, ImageError, without_pictures

BYTES = bytes(range(256)) * 3


@pytest.mark.parametrize(
    "picture",
    [
        base64.b64encode(BYTES).decode(),
        "data:image/png;base64,iVBORw0KGgo=",
        base64.encodebytes(BYTES).decode().strip(),
        repr(BYTES),
        repr(BYTES)[:300],
    ],
    ids=["text", "data URI", "lines", "bytes", "cut bytes"],
)
def test_a_message_names_a_picture_by_its_length(picture: str) -> None:
    for error in (DataError(f"a.jsonl:3: got {picture}, no"), ImageError(picture), EndpointError("bad_request", picture)):
        assert "[data of " in str(error) and picture[23:40] not in str(error) and len(str(error)) < 80


def test_other_text_is_kept() -> None:
    for text in ("/data/" + "patients/series-12/" * 20, "f" * 128, "data:image/png", "word " * 200):
        assert without_pictures(text) == text
