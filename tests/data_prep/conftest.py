"""What tests of built data sets share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import build


@pytest.fixture
def build_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the builder as the command line does; returns the folder of built sets."""

    def run(name: str, source: Path | str, *flags: str) -> Path:
        data_dir = tmp_path / "built"
        monkeypatch.setattr("sys.argv", ["build", name, f"--source={source}", f"--data_dir={data_dir}", *flags])
        build.main()
        return data_dir

    return run
