"""`vitar_7b` at the size of Qwen2.5-VL-3B, for small slices. All other settings are the same.

--config.model.pretrained=Qwen/Qwen2.5-VL-3B-Instruct
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_7b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.model.size = "qwen2_5_vl_3b"
    config.rollout.tensor = 2  # one key-value head per device
    return config
