"""What an error of an entry point has to look like."""

from collections.abc import Callable

Main = Callable[..., int]  # the fixture `main`


def check_error(captured: str, *parts: str) -> None:
    """Asserts that the output is one line, which says what is wrong."""
    lines = [line for line in captured.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured
    for part in parts:
        assert part in lines[0]
