"""Runs only the second stage of `vitar_7b`: GRPO, from any weights.

--config.model.pretrained=RUN/sft/model                     weights trained by `vitar_sft_7b`, as in ViTAR
--config.model.pretrained=lingshu-medical-mllm/Lingshu-7B   weights without SFT, as a baseline
"""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

_BASE = runpy.run_path(str(Path(__file__).with_name("vitar_7b.py")))


def get_config() -> ConfigDict:
    config: Any = _BASE["get_config"]()
    config.schedule = ("grpo",)
    config.stages.grpo.start = ""
    del config.stages["sft"]
    return config
