"""`vitar_7b` at the size of Qwen2.5-VL-3B, for small slices; what is not named here is the same.

--config.model.pretrained=Qwen/Qwen2.5-VL-3B-Instruct
"""

from typing import Any

from ml_collections import ConfigDict

from configs import vitar_7b


def get_config() -> ConfigDict:
    config: Any = vitar_7b.get_config()
    config.model.size = "qwen2_5_vl_3b"
    config.rollout.tensor = 2  # as many as it has key-value heads
    return config
