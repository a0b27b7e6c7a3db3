"""Commands that are killed leave nothing that looks finished, and go on."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.datasets import read_back
from tests.kit.processes import start
from tests.kit.slake import published
from vitar_jax.errors import DataError


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path: Path, build_set: Callable[..., Path]) -> None:
    """It is killed after its shards are written, just before it would be moved to its place."""
    data_dir = tmp_path / "built"
    code = f"""
import sys, time
from data_prep import build
from data_prep.building import store
store.write_card = lambda card, made: (print("written", flush=True), time.sleep(60))
sys.argv = ["build", "slake", "--source={published(tmp_path / "slake")}", "--data_dir={data_dir}"]
build.main()
"""
    with start(sys.executable, "-c", code, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name[:7] for path in data_dir.iterdir()] == [".slake-"]
    with pytest.raises(DataError, match="no built set found"):
        read_back(data_dir, "slake", "test_en")
    build_set("slake", tmp_path / "slake")
    assert len(read_back(data_dir, "slake", "test_en")) == 1
