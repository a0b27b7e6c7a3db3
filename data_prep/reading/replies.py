"""JSON in the replies of language models."""

import json
import re
from typing import Any

from vitar_jax.errors import EndpointError

_REFUSAL = re.compile(r"\b(sorry|apologi[sz]e|cannot|can't|can’t|unable|not able|decline)\b", re.IGNORECASE)


def reply_object(reply: str) -> dict[str, Any]:
    """Parses the JSON object in a reply, ignoring text around it.

    Raises:
      EndpointError: If the reply is a refusal ("refusal") or no JSON ("bad_json").
    """
    start, end = reply.find("{"), reply.rfind("}")
    try:
        said = json.loads(reply[start : end + 1])
        json.dumps(said, ensure_ascii=False).encode()  # refuses lone surrogates, which cannot be written to a file
    except (ValueError, RecursionError) as error:
        kind = "refusal" if start < 0 and _REFUSAL.search(reply) else "bad_json"
        raise EndpointError(kind, f"expected a JSON object, got {reply[:300]!r}") from error
    return said


def reply_text(value: Any, what: str, kind: str = "bad_schema") -> str:
    """Returns a text of a reply with single spaces.

    Args:
      what: Start of the error message.
      kind: Kind of the error.

    Raises:
      EndpointError: If the value is not text, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise EndpointError(kind, f"{what}: got {value!r}, expected text")
    return " ".join(value.split())
