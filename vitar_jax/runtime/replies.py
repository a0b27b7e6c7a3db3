"""Text in the replies of chat endpoints: an answer without the model's reasoning, and the reason of a failure."""

import json
import re
from collections.abc import Mapping
from typing import Any

_NAMES = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad)"
_REASONING_TAG = re.compile(rf"[<\[◁](?P<closing>/?)\s*{_NAMES}(?:\s[^<>\[\]]{{0,200}})?\s*[>\]▷]", re.IGNORECASE)
_HTML = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^<>]*>", re.DOTALL | re.IGNORECASE)
_LONGEST_PAGE = 20_000  # characters that are searched for a line of text
_REASON_KEYS = ("error", "errors", "message", "detail", "msg", "reason", "title", "type", "code")


def without_reasoning(text: str) -> str:
    """Removes a model's reasoning: `<think>...</think>` and its variants, such as `<thinking>` and `[THINK]`.

    Some chat templates put the opening tag into the prompt, so text before an unmatched closing tag is reasoning. Text after an
    unclosed opening tag is reasoning that was cut off. The text is unchanged if it has no such tag.
    """
    kept: list[str] = []
    place, thinking = 0, False
    for tag in _REASONING_TAG.finditer(text):
        if not tag["closing"]:
            if not thinking:
                kept.append(text[place : tag.start()])
            thinking = True
            continue
        if not thinking:
            kept.clear()
        place, thinking = tag.end(), False
    return "".join(kept) + ("" if thinking else text[place:])


def message_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message: its content, or the text parts of it, as from Mistral's reasoning models.

    Ignores `reasoning_content` and other fields for reasoning. Raises LookupError or TypeError if it is not a message.
    """
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return "".join(parts)


def failure_reason(body: str) -> str:
    """Returns the reason that the body of a failed response states: its error message, else its first line of text.

    Reads the forms of OpenAI, vLLM, FastAPI, Mistral, Google and others. The rest of the body is left out, because some
    endpoints repeat the request in it.
    """
    try:
        said = _message(json.loads(body))
    except (ValueError, RecursionError):
        said = ""
    lines = map(str.strip, _HTML.sub("\n", body[:_LONGEST_PAGE]).splitlines())
    return said or next(filter(None, lines), "")


def _message(value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value).strip()
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message, value)))
    if not isinstance(value, dict):
        return ""
    said = next(filter(None, (_message(value.get(key)) for key in _REASON_KEYS)), "")
    place = value.get("loc")  # a field of the request, as FastAPI names it
    return f"{'.'.join(map(str, place))}: {said}" if said and isinstance(place, list) else said
