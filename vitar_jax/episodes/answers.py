"""What counts as the same answer. Rewards and scoring share these."""

_IGNORED = str.maketrans("", "", " _")


def normalise_answer(text: str) -> str:
    """Drops spaces and underscores and lower-cases: ViTAR's rule for an exact match."""
    return text.translate(_IGNORED).lower()


def exact_match(predicted: str | None, answer: str) -> bool:
    return predicted is not None and normalise_answer(predicted) == normalise_answer(answer)
