"""Extracts the answer that a text states, and tests whether answers are equal, for rewards, scoring and converted data."""

import re

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_IGNORED = str.maketrans("", "", " _")


def normalise_answer(text: str) -> str:
    """Removes spaces and underscores and lower-cases the text, as ViTAR does for an exact match."""
    return text.translate(_IGNORED).lower()


def exact_match(predicted: str | None, *answers: str) -> bool:
    """Returns whether a predicted answer equals one of the correct answers, as ViTAR compares them."""
    return predicted is not None and normalise_answer(predicted) in map(normalise_answer, answers)


def tagged(text: str) -> str | None:
    """Returns the content of the first `<answer>`."""
    found = _ANSWER_TAG.search(text)
    return found[1].strip() if found else None
