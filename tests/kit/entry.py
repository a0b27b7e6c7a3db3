"""How tests start entry points, and what an error has to look like."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
MICRO = str(ROOT / "tests" / "kit" / "micro.py")
Main = Callable[..., int]


def in_process_of_its_own(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | environ
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def check_error(captured: str, *parts: str) -> None:
    """One line, which says what is wrong."""
    lines = [line for line in captured.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), captured
    for part in parts:
        assert part in lines[0]
