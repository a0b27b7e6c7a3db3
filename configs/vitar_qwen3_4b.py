"""`vitar_7b` from Qwen3-VL-4B. Images still have at most 256 tokens, of 32 x 32 pixels here. All other settings are the same.

--config.model.pretrained=Qwen/Qwen3-VL-4B-Instruct
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_7b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.model.size = "qwen3_vl_4b"
    config.processor.max_pixels = 32 * 32 * 256
    config.processor.size_classes = ((1, 1024),)  # the vision tower has no windows
    return config
