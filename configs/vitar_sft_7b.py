"""Runs only the first stage of `vitar_7b`: supervised fine-tuning on interactive examples."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_7b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.schedule = ("sft",)
    del config.stages["grpo"]
    return config
