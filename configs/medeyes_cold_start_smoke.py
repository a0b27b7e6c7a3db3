"""A shortened `medeyes_cold_start`, as `medeyes_quickstart_smoke`, with one probe per arm."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE, _SMOKE = (
    runpy.run_path(str(Path(__file__).with_name(name))) for name in ("medeyes_cold_start.py", "medeyes_quickstart_smoke.py")
)


def get_config() -> ConfigDict:
    config: Any = _SMOKE["shorten"](_BASE["get_config"]())
    for name in _BASE["ARMS"]:
        config.stages[name].update(probe_every=2, probe_samples=4)
    return config
