"""Loads the recipe files of `configs`, which is not a package."""

import runpy
from typing import Any

from tests.kit.processes import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def load_config(name: str) -> Any:
    """Returns the config of `configs/NAME.py`, unlocked and without defaults."""
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
