"""The form of an entry point's error messages."""

from collections.abc import Callable

Main = Callable[..., int]  # the fixture `main`


def check_error(captured: str, *parts: str) -> None:
    """Asserts that the output is a single error line, which contains all `parts`."""
    lines = [line for line in captured.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured
    for part in parts:
        assert part in lines[0]
