"""Our recipe files, which are no modules, as tests read them."""

import runpy
from typing import Any

from tests.kit.processes import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def load_config(name: str) -> Any:
    """Returns the config of `configs/NAME.py`, not locked and without defaults."""
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
