"""Where a text says its answer, and what counts as the same one. Rewards, scoring and converted data share these."""

import re

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_IGNORED = str.maketrans("", "", " _")


def normalise_answer(text: str) -> str:
    """Drops spaces and underscores and lower-cases: ViTAR's rule for an exact match."""
    return text.translate(_IGNORED).lower()


def exact_match(predicted: str | None, answer: str) -> bool:
    return predicted is not None and normalise_answer(predicted) == normalise_answer(answer)


def tagged(text: str) -> str | None:
    """What the first `<answer>` holds."""
    found = _ANSWER_TAG.search(text)
    return found[1].strip() if found else None
