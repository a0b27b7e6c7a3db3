"""A shortened `quickstart_outline` with a smaller model: checks that every part runs. It learns nothing worth measuring."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE, _SMOKE = (
    runpy.run_path(str(Path(__file__).with_name(name))) for name in ("quickstart_outline.py", "quickstart_masks_smoke.py")
)


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    _SMOKE["shorten"](config)
    return config
