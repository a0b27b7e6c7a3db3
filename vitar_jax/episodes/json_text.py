"""JSON in a model's turns: reads any text safely, and writes numbers briefly."""

import json
from typing import Any

MAX_BRACKETS = 100  # deeper nesting could overflow the stack of a JSON reader or writer


def load_json(text: str) -> Any:
    """Parses JSON. Returns None for invalid JSON, too many brackets, or a lone surrogate, which cannot be encoded."""
    if count_brackets(text) > MAX_BRACKETS:
        return None
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return None
    return value


def count_brackets(text: str) -> int:
    """Returns the number of opening brackets, an upper bound of the nesting depth."""
    return text.count("[") + text.count("{")


def short_number(value: float) -> float:
    """Returns a whole number as an int, which JSON writes without a decimal point."""
    return int(value) if value == int(value) else value
