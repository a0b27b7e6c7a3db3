"""Fixtures of every test, and the simulated devices they run on."""

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from absl import app, flags

from tests.kit.processes import QUICK_COMPILATION

pytest_plugins = ["tests.kit.reports"]

# Before anything imports jax, which reads these once: the CPU, as eight simulated devices; compiled programs are kept where
# the environment says, and not in the user's home.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
for _flag in ("--xla_force_host_platform_device_count=8", *QUICK_COMPILATION):
    if _flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()


# No test is timed: on a busy machine, an example that compiles takes longer than hypothesis allows.
hypothesis.settings.register_profile("untimed", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("untimed")

# Collection creates millions of objects that live to the end. The garbage collector is off meanwhile, ignores them afterwards,
# and runs rarely.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out sweeps, unless `-m` names them, and puts files with slow tests first."""
    if "sweep" not in config.option.markexpr:
        sweeps = [item for item in items if item.get_closest_marker("sweep")]
        config.hook.pytest_deselected(items=sweeps)
        items[:] = [item for item in items if not item.get_closest_marker("sweep")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data that `VITAR_TEST_DATA` names.

    Without it the test is skipped, except under continuous integration (`CI=true`), where it fails.
    """
    folder = os.environ.get("VITAR_TEST_DATA")
    if folder:
        path = Path(folder)
        if not path.is_dir():
            pytest.fail(f"VITAR_TEST_DATA names {folder}, which is not a folder")
        return path
    reason = "needs real data: VITAR_TEST_DATA is not set"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs an entry point of a module with arguments, and options of `cli.run`, and returns its exit code."""
    from vitar_jax.runtime import cli  # imports jax

    app.define_help_flags()  # the first call defines them, later ones do nothing
    known = set(flags.FLAGS)

    def call(module: ModuleType, *arguments: str, **options: Any) -> int:
        module.define_flags()
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        try:
            with pytest.raises(SystemExit) as caught:
                cli.run(module.main, **options)
        finally:
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        code = caught.value.code
        assert code is None or isinstance(code, int)
        return code or 0

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the micro recipe with random weights, as a stage leaves it."""
    from tests.kit import micro  # both import jax
    from tests.kit.checkpoints import save_random

    return save_random(micro.get_config(), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def options_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint, as of a training whose questions all had options."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("options") / "model"))
    settings = folder / "vitar_jax.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"options_only": True}))
    return folder


@pytest.fixture
def build_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs the builder of data sets as the command line does, and returns the folder of built sets."""

    from data_prep import build  # imports jax

    def run(name: str, source: Path | str, *flags: str) -> Path:
        data_dir = tmp_path / "built"
        monkeypatch.setattr("sys.argv", ["build", name, f"--source={source}", f"--data_dir={data_dir}", *flags])
        build.main()
        return data_dir

    return run
